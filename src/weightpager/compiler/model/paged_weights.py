"""Which weights of a model are paged, and why the others aren't."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import BASE
from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.format.manifest import WeightEntry
from weightpager.bundle.report.page_statistics import PagedShare
from weightpager.errors import CompileError
from weightpager.nn.embedding import is_plain_embedding
from weightpager.nn.experts import ExpertRouter, is_linear


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and persistent buffer by canonical name: ``base_model.…``, or the head's own name.

    A tied tensor is listed once, under its name in the base if it has one there.
    """
    prefix = model.base_model_prefix + "."
    named = {canonical(name, prefix): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    listed: set[int] = set()
    result: dict[str, Tensor] = {}
    for name in sorted(named, key=lambda name: not name.startswith(BASE)):
        if id(named[name]) not in listed:
            listed.add(id(named[name]))
            result[name] = named[name]
    return result


def canonical(name: str, prefix: str) -> str:
    """``prefix`` (the base's attribute and a dot) replaced by ``base_model.``."""
    return BASE + name[len(prefix) :] if name.startswith(prefix) else name


def replace_tensors(model: PreTrainedModel, swap: Mapping[int, Tensor]) -> None:
    """Put other tensors in the places of those whose `id` is in ``swap``; tied places get the same one."""
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            slots.update({key: swap[id(tensor)] for key, tensor in slots.items() if id(tensor) in swap})


@contextmanager
def requiring_gradients(model: nn.Module, weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients for ``weights`` only: autograd then skips the others'."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    wanted = {id(weight) for weight in weights}
    try:
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, flag in before:
            parameter.requires_grad_(flag)


@dataclass(frozen=True)
class PagedWeightInfo:
    """A linear layer whose weight is cut into blocks; ``layer`` is the repeated layer it lies in."""

    name: str
    layer: int
    grid: BlockGrid

    @property
    def elements(self) -> int:
        """How many numbers the weight has."""
        return self.grid.out_features * self.grid.in_features

    @property
    def entry(self) -> WeightEntry:
        """What a manifest says of it."""
        sizes = {"out_features": self.grid.out_features, "in_features": self.grid.in_features}
        return WeightEntry(name=self.name, layer=self.layer, **sizes)


def sort_weights(
    models: dict[str, PreTrainedModel], block: BlockShape, path: Path
) -> tuple[tuple[PagedWeightInfo, ...], dict[str, str]]:
    """The paged weights, in order of execution; and every other tensor of two or more dimensions, and why.

    Raises:
        CompileError: nothing can be paged, or the tasks' modules differ.
    """
    paged: dict[str, PagedWeightInfo] = {}
    resident: dict[str, str] = {}
    for model in models.values():
        reasons = why_resident(model, block)
        # A tied weight has several names, of which one is canonical. Only that one may be paged.
        wanted = parameters(model).keys() - reasons
        here = {info.name: info for info in _pageable(model, block) if info.name + ".weight" in wanted}
        if paged and here.keys() != paged.keys():
            raise CompileError(f"{path}: {type(model).__name__} has other linear layers than another task's module")
        paged |= here
        resident |= reasons
    if not paged:
        reasons_found = ", ".join(sorted(set(resident.values())))
        raise CompileError(f"{path}: expected a linear layer to page, found none; the weights are: {reasons_found}")
    return tuple(paged.values()), resident


def share_of(
    models: Mapping[str, PreTrainedModel], paged: Sequence[PagedWeightInfo], reasons: Mapping[str, str]
) -> PagedShare:
    """How much of the tasks' modules is paged; ``reasons`` say why other matrices aren't."""
    weights = {f"{info.name}.weight" for info in paged}
    others = [
        {name: tensor.numel() for name, tensor in parameters(model).items() if name not in weights}
        for model in models.values()
    ]
    return PagedShare.of((info.elements for info in paged), max(others, key=lambda own: sum(own.values())), reasons)


def _pageable(model: PreTrainedModel, block: BlockShape) -> Iterator[PagedWeightInfo]:
    """Linear layers inside repeated layers, as far as their kind and place say."""
    layers = {f"{name}.": number for number, name in enumerate(repeated_layers(model.base_model))}
    for name, module in model.base_model.named_modules():
        layer = next((number for prefix, number in layers.items() if name.startswith(prefix)), None)
        if layer is not None and is_linear(module):
            yield PagedWeightInfo(BASE + name, layer, BlockGrid(module.out_features, module.in_features, block))


def repeated_layers(base: nn.Module) -> list[str]:
    """Names of the children of every outermost `nn.ModuleList`, in order."""
    layers: list[str] = []
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(f"{layer}." for layer in layers)):
            layers += [f"{name}.{child}" for child in range(len(module))]
    return layers


def tied_tensors(model: PreTrainedModel) -> dict[str, list[str]]:
    """Parameters that the model has under several names: canonical name → the other ones."""
    names: dict[int, list[str]] = {}
    for name, tensor in _slots(model):
        names.setdefault(id(tensor), []).append(name)
    listed = parameters(model)
    others = {name: [other for other in names.get(id(tensor), []) if other != name] for name, tensor in listed.items()}
    return {name: aliases for name, aliases in others.items() if aliases}


def embedding_tables(models: Mapping[str, PreTrainedModel]) -> frozenset[str]:
    """Weights that all tasks' modules do nothing but look rows up in, by canonical name."""
    tables: set[str] = set()
    tied: set[str] = set()
    for model in models.values():
        prefix = model.base_model_prefix + "."
        modules = model.named_modules(remove_duplicate=False)
        tables |= {canonical(f"{name}.weight", prefix) for name, module in modules if is_plain_embedding(module)}
        tied |= {name for found, others in tied_tensors(model).items() for name in (found, *others)}
    return frozenset(tables - tied)


def whole_weights(models: Mapping[str, PreTrainedModel], block: BlockShape) -> dict[str, tuple[int, int]]:
    """Shapes of the matrices, by canonical name, that aren't paged and that some task's module multiplies by.

    A pooler is one, a decoder's head, and the table that it may be tied to. Left out are heads of labelled tasks, and
    matrices that a module uses in other ways than plain embeddings and linear layers do.
    """
    whole: dict[str, tuple[int, int]] = {}
    others: set[str] = set()
    for model in models.values():
        users, head, named = _users(model), model.get_output_embeddings(), parameters(model)
        for name in why_resident(model, block):
            using = users.get(id(named[name]), [])
            multiplying = [module for module in using if is_linear(module)]
            if len(multiplying) + sum(map(is_plain_embedding, using)) < len(using):
                others.add(name)
            elif any(name.startswith(BASE) or module is head for module in multiplying):
                whole[name] = (named[name].shape[0], named[name].shape[1])
    return {name: shape for name, shape in whole.items() if name not in others}


def _users(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that use each tensor, by its `id`."""
    users: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for tensor in module._parameters.values():
            if tensor is not None:
                users.setdefault(id(tensor), []).append(module)
    return users


def why_resident(model: PreTrainedModel, block: BlockShape) -> dict[str, str]:
    """Why matrices stay resident, by canonical name; a pageable one is absent."""
    prefix = model.base_model_prefix + "."
    owners = {
        canonical(f"{name}.{key}", prefix): module
        for name, module in model.named_modules(remove_duplicate=False)
        for key in module._parameters
    }
    tied = tied_tensors(model)
    grids = {info.name + ".weight": info.grid for info in _pageable(model, block)}
    reasons: dict[str, str] = {}
    for name, tensor in parameters(model).items():
        reason = _reason(name, tensor, owners.get(name), grids.get(name), tied.get(name, []))
        if tensor.ndim >= 2 and reason:
            reasons[name] = reason
    return reasons


def _slots(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every place that holds a parameter, by canonical name; a module that lies at two paths counts twice."""
    prefix = model.base_model_prefix + "."
    for name, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                yield canonical(f"{name}.{key}", prefix), tensor


def _reason(
    name: str, tensor: Tensor, owner: nn.Module | None, grid: BlockGrid | None, others: list[str]
) -> str | None:
    if isinstance(owner, nn.Embedding):
        return "embedding" + (f", tied to {', '.join(others)}" if others else "")
    if others:
        return f"tied to {', '.join(others)}"
    if not name.startswith(BASE):
        return "head"
    if "experts" in name and tensor.ndim == 3:
        return f"experts in one tensor ({type(owner).__name__}) of a family that isn't known"
    if isinstance(owner, ExpertRouter):
        return "router"
    if not is_linear(owner):
        return f"{type(owner).__name__}, not a plain linear layer" if owner is not None else "buffer"
    if grid is None:
        return "pooler" if "pooler" in name else "not in a repeated layer"
    if grid.out_features < grid.block.rows or grid.in_features < grid.block.cols:
        return f"smaller than a block of {grid.block}"
    return None
