"""One task's torch module over the shared arena."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from weightpager.backends.task_parts import StoredMatrix, TaskParts, no_arrays
from weightpager.backends.torch.architecture import empty_module, full_name
from weightpager.backends.torch.parameters import Tensors, activation_dtype
from weightpager.bundle import BlockTable
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.errors import BundleFormatError, InferenceOnlyError
from weightpager.kernels.rows import RowSource
from weightpager.kernels.torch import DeviceWeight, Weight
from weightpager.nn.embedding import (
    Int8Embedding,
    PagedEmbedding,
    WholeEmbedding,
    WholeLinear,
    is_plain_embedding,
    keep_tables_narrow,
)
from weightpager.nn.experts import fuse_gated_mlps, is_linear, mixtures
from weightpager.nn.linear import DroppedLinear, FlatLinear, LowRankPart, PagedLinear
from weightpager.nn.skeleton import missing_values


def put_whole(module: nn.Module, name: str, weight: Weight, dtype: torch.dtype) -> None:
    """Replace, in place, all layers that share a parameter; a module that lacks it stays as it is.

    Args:
        module: whose parameters have no values yet.
        name: of the parameter, as the module calls it.
        weight: its values.
        dtype: that the module computes in.

    Raises:
        BundleFormatError: the parameter is of another shape, or used in another way than by lookup and product.
    """
    try:
        old = module.get_parameter(name)
    except AttributeError:
        return
    shape = (weight.out_features, weight.in_features)
    if tuple(old.shape) != shape:
        raise BundleFormatError("manifest.json", f"whole_weights.{name}", f"{tuple(old.shape)}", f"{shape}")
    made: dict[int, nn.Module] = {}
    for path, part in list(module.named_modules(remove_duplicate=False)):
        if any(tensor is old for tensor in part._parameters.values()):
            if id(part) not in made:
                made[id(part)] = _over(weight, part, name, dtype)
            module.set_submodule(path, made[id(part)])


def without_ties(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values under every name that a module has for a parameter, so that nothing has to be tied afterwards.

    Args:
        wanted: the module's parameters and buffers, by all their names.
        state: values, each under one of its names at least.
    """
    values = {id(wanted[name]): value for name, value in state.items() if name in wanted}
    return {name: values[id(tensor)] for name, tensor in wanted.items() if id(tensor) in values}


def _over(weight: Weight, part: nn.Module, name: str, dtype: torch.dtype) -> nn.Module:
    if is_plain_embedding(part):
        return WholeEmbedding(weight, dtype, part.padding_idx)
    if not is_linear(part):
        wanted = "a weight that only embeddings and linear layers of the architecture use"
        raise BundleFormatError("manifest.json", f"whole_weights.{name}", wanted, part)
    layer = WholeLinear(weight, None, dtype)
    layer.bias = part.bias  # which has its value with all others
    return layer


HostOrDeviceArray = Any
"""An array on the host, or a tensor on any device."""

_DTYPES = (torch.float32, torch.bfloat16)
"""What kernels compute with."""

_FLOATS = "float32 or bfloat16"


def build(parts: TaskParts[Tensors], config: PretrainedConfig, rows: Mapping[str, Tensor]) -> nn.Module:
    """The task's own module: resident parameters shared with the other tasks', private ones its own.

    It is built on the arena's device, and refers to parameters without a copy.

    Args:
        parts: of the task.
        config: of the model.
        rows: tables that would come on demand, as they are stored whole on the arena's device, by canonical name.

    Raises:
        BundleFormatError: the bundle's parameters don't make up the module.
    """
    bundle, task, values = parts.bundle, parts.name, parts.parameters.values
    module = empty_module(config, bundle.task(task), len(values) + len(bundle.manifest.weights))
    state = {full_name(module, name): value for name, value in values.items()}
    _put_paged_layers(module, parts, state)
    dtype = activation_dtype(state.values())
    _put_row_tables(module, parts, rows, dtype)
    _put_whole_weights(module, parts, state, dtype)
    dropped = bundle.dropped(task)
    route(module, task, {name: table for name, table in parts.tables.items() if name not in dropped})
    fuse_gated_mlps(module)
    _flatten_head(module)
    assign(module, state, task)
    keep_tables_narrow(module, dtype)
    _refuse_files(module)
    module.register_forward_pre_hook(partial(_refuse_texts, task))
    if bundle.task(task).takes_images or bundle.pictures is not None:
        module.register_forward_pre_hook(partial(_round_pixels, dtype), with_kwargs=True)
    module.to(_device(parts.arena))  # what its constructor computed was on the host
    _refuse_changes(module)
    return module


def paged_weight(matrix: StoredMatrix, arena: HostOrDeviceArray, page_table: HostOrDeviceArray) -> Weight:
    """A matrix of one task, as kernels take it where its arena is."""
    device, table, grid = _device(arena), matrix.table, matrix.grid
    if device.type == "cpu":
        return matrix.on_host(np.asarray(arena), np.asarray(page_table))
    return DeviceWeight(
        arena=arena,
        page_table=page_table,
        crow_indices=_on(device, table.crow_indices),
        col_indices=_on(device, table.col_indices),
        locations=_on(device, table.locations),
        out_features=grid.out_features,
        in_features=grid.in_features,
        block_rows=grid.block.rows,
        block_cols=grid.block.cols,
        dtype=matrix.dtype,
    )


def route(module: nn.Module, task: str, tables: Mapping[str, BlockTable]) -> bool:
    """Have routers pass over the experts that a task has dropped: those without a block of one of their matrices.

    Returns:
        Whether it has dropped any.

    Raises:
        BundleFormatError: a router has none left.
    """
    empty = {full_name(module, name) for name, table in tables.items() if not len(table.col_indices)}
    dropped = False
    for mixture in mixtures(module):
        kept = [empty.isdisjoint(mixture.weights(expert)) for expert in range(len(mixture.experts))]
        if not any(kept):
            raise BundleFormatError(f"tasks/{task}", f"{mixture.name}.experts", "blocks of at least one", "none")
        mixture.router.kept = torch.tensor(kept)
        dropped |= not all(kept)
    return dropped


def _refuse_texts(task: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:  # noqa: ARG001
    """Say what answers texts; transformers would miss an attribute of theirs."""
    if inputs and isinstance(inputs[0], (str, list, tuple)):
        raise no_arrays(task, inputs[0])


def _put_paged_layers(module: nn.Module, parts: TaskParts[Tensors], state: Mapping[str, Tensor]) -> None:
    """Put a paged layer in place of each linear layer whose weight is paged; ``state`` has their biases."""
    dropped, low_rank = parts.bundle.dropped(parts.name), _low_rank(parts)
    for entry in parts.bundle.manifest.weights:
        name = full_name(module, entry.name)
        if entry.name in dropped:
            _replace_linear(module, name, DroppedLinear(entry.in_features, entry.out_features))
            continue
        if entry.name not in parts.weights:
            matrix = StoredMatrix.of_entry(parts.bundle, entry, parts.tables[entry.name])
            parts.weights[entry.name] = paged_weight(matrix, parts.arena, parts.page_table)
        weight, added = parts.weights[entry.name], low_rank.get(entry.name)
        _replace_linear(module, name, PagedLinear(weight, state.get(f"{name}.bias"), entry.layer, parts.gate, added))


def _low_rank(parts: TaskParts[Tensors]) -> dict[str, LowRankPart]:
    """What is added to paged weights, by their names."""
    return {
        name: LowRankPart(*(paged_weight(matrix, parts.arena, parts.page_table) for matrix in matrices))
        for name, matrices in parts.low_rank_matrices().items()
    }


def _put_row_tables(
    module: nn.Module, parts: TaskParts[Tensors], rows: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Put an embedding over stored rows in place of each whose table comes on demand, or as whole ``rows``."""
    sources: dict[str, RowSource | Tensor] = {**parts.rows, **rows}
    for name, table in parts.bundle.row_tables.items():
        if name not in parts.parameters.values:
            _replace_embedding(module, table.entry, sources[name], dtype)


def _put_whole_weights(
    module: nn.Module, parts: TaskParts[Tensors], state: dict[str, Tensor], dtype: torch.dtype
) -> None:
    """Put layers over whole weights in place of those that share one; these weights leave ``state``."""
    for name, weight in parts.parameters.whole.items():
        put_whole(module, full_name(module, name), weight, dtype)
        del state[full_name(module, name)]


def _device(arena: HostOrDeviceArray) -> torch.device:
    return arena.device if isinstance(arena, Tensor) else torch.device("cpu")


def _on(device: torch.device, values: npt.NDArray[Any]) -> Tensor:
    """Values on a device: the same memory, if that is the host's."""
    return torch.from_numpy(values).to(device)


def _replace_linear(module: nn.Module, name: str, paged: PagedLinear | DroppedLinear) -> None:
    try:
        old = module.get_submodule(name)
    except AttributeError:
        old = None
    if not is_linear(old) or old.weight.shape != (paged.out_features, paged.in_features):
        wanted = f"a linear layer of {paged.out_features}x{paged.in_features} in the architecture"
        raise BundleFormatError("manifest.json", f"weights.{name}", wanted, old)
    if isinstance(paged, DroppedLinear):
        module.set_submodule(name, paged)
        return
    biases = [None if bias is None else tuple(bias.shape) for bias in (old.bias, paged.bias)]
    if biases[0] != biases[1]:
        raise BundleFormatError("parameters", f"{name}.bias", biases[0], biases[1])
    if paged.bias is not None and paged.bias.dtype not in _DTYPES:
        raise BundleFormatError("parameters", f"{name}.bias", _FLOATS, paged.bias.dtype)
    module.set_submodule(name, paged)


def _replace_embedding(module: nn.Module, entry: RowTableEntry, source: RowSource | Tensor, dtype: torch.dtype) -> None:
    name = full_name(module, entry.name).removesuffix(".weight")
    try:
        old = module.get_submodule(name)
    except AttributeError:
        old = None
    shape = (entry.rows, entry.columns)
    if old is None or not is_plain_embedding(old) or old.weight.shape != shape or _is_tied(module, old.weight):
        wanted = f"an embedding of {entry.rows}x{entry.columns} in the architecture that is only looked up"
        raise BundleFormatError("manifest.json", f"row_tables.{name}", wanted, old)
    if isinstance(source, Tensor):
        module.set_submodule(name, Int8Embedding(source, dtype, old.padding_idx))
    else:
        module.set_submodule(name, PagedEmbedding(source, entry.rows, entry.columns, dtype, old.padding_idx))


def _is_tied(module: nn.Module, weight: Tensor) -> bool:
    return sum(each is weight for _, each in module.named_parameters(remove_duplicate=False)) > 1


def _refuse_files(module: nn.Module) -> None:
    module.register_load_state_dict_pre_hook(_refuse_values)  # type: ignore[no-untyped-call]
    module.save_pretrained = _refuse_to_save  # type: ignore[assignment]


def _refuse_values(*_: Any) -> None:
    raise InferenceOnlyError(
        "a task's module takes no other values: it shares parameters with all tasks of the bundle, and has its paged "
        "weights from there; train the checkpoint and compile it again"
    )


def _refuse_to_save(*_: Any, **__: Any) -> None:
    raise InferenceOnlyError(
        "a task's module has its paged weights in the engine's arena, and they would be missing from what is saved; "
        "'weightpager export' writes all of them"
    )


def _refuse_changes(module: nn.Module) -> None:
    """Have the module stay in its dtype, on its device and in inference."""
    module._apply = partial(_stay, module)  # type: ignore[method-assign]
    module.train = partial(_evaluate, module)  # type: ignore[method-assign]


def _stay(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:  # noqa: ARG001
    """Stand in for ``_apply``, through which torch casts and moves modules: let through only what changes nothing."""
    for tensor in (*module.parameters(), *module.buffers()):
        converted = convert(tensor.new_empty(0))
        if (converted.dtype, converted.device) != (tensor.dtype, tensor.device):
            raise InferenceOnlyError(
                f"a task's module stays as the engine made it, and can't go from {tensor.dtype} on {tensor.device} to "
                f"{converted.dtype} on {converted.device}: its kernels, and the budget, count on that; open the bundle "
                "with the dtype and device that you want"
            )
    return module


def _evaluate(module: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for ``train``, which ``eval`` calls, too: dropout would stay for whoever uses the task next."""
    if mode:
        raise InferenceOnlyError(
            "a task's module is for inference, and dropout would change its answers from now on; train the checkpoint "
            "and compile it again"
        )
    return nn.Module.train(module, mode)


def _round_pixels(
    dtype: torch.dtype, _: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A hook before a module of images or pictures: readers give float32, and not every architecture rounds it."""

    def rounded(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(rounded, arguments)), {name: rounded(value) for name, value in named.items()}


def _flatten_head(module: nn.Module) -> None:
    for name, layer in list(module.named_children()):
        if isinstance(layer, nn.Linear) and name == "lm_head":
            setattr(module, name, FlatLinear.of(layer))


def assign(module: nn.Module, state: dict[str, Tensor], task: str) -> None:
    """Give every parameter its value.

    Some values may be left over: they belong to parts that only other tasks' modules have.
    """
    wanted = module.state_dict(keep_vars=True)
    for name in wanted.keys() & state.keys():
        if wanted[name].shape != state[name].shape:
            found = tuple(state[name].shape)
            raise BundleFormatError(f"tasks/{task}", name, tuple(wanted[name].shape), found)
        # load_state_dict would take integers for a parameter, and the first forward would stumble over them.
        floating = wanted[name].is_floating_point() or state[name].is_floating_point()
        if floating and state[name].dtype not in _DTYPES:
            raise BundleFormatError(f"tasks/{task}", name, _FLOATS, state[name].dtype)
    tie = getattr(module, "tie_weights", None)
    if any(isinstance(part, WholeLinear) for part in module.modules()):
        # A head would be tied to the embedding's weight, which may be no parameter any more.
        tie, state = None, without_ties(wanted, state)
    module.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False, assign=True)
    if tie is not None:
        tie()
    module.requires_grad_(False)
    for name in missing_values(module):
        raise BundleFormatError(f"tasks/{task}", name, "a value", "none")
