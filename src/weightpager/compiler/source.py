"""The dense model: one module per task, all over the same base parameters, and which weights of it are paged."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.bundle.manifest import TaskKind
from weightpager.compiler import data
from weightpager.compiler.task_file import TaskFile, TaskSpec
from weightpager.engine.architecture import BASE, CLASSES, quiet_transformers
from weightpager.errors import CompileError

_log = logging.getLogger(__name__)

_LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError)


@dataclass(frozen=True)
class PagedWeightInfo:
    """A linear layer whose weight is cut into blocks; ``layer`` is the repeated layer it lies in."""

    name: str
    layer: int
    grid: BlockGrid


@dataclass(frozen=True)
class Source:
    """The dense model.

    Attributes:
        task_file: what it was loaded for.
        config: of the model directory, without any task's head.
        tokenizer: fast, padding on the right.
        models: per task an ordinary module, in float32 and evaluation mode. What lies in ``base_model`` is the very
            same Parameter in all of them, and so is a language model's head.
        paged: in the order in which the architecture registers them, which is that of execution.
        resident: every other tensor of two or more dimensions, by canonical name, and why it isn't paged.
    """

    task_file: TaskFile
    path: Path
    config: PretrainedConfig
    tokenizer: Any
    models: dict[str, PreTrainedModel]
    paged: tuple[PagedWeightInfo, ...]
    resident: dict[str, str]

    def linear(self, task: str, name: str) -> nn.Linear:
        """The paged linear layer of a task's module, by canonical name."""
        return cast(nn.Linear, self.models[task].base_model.get_submodule(name.removeprefix(BASE)))

    def parameters(self, task: str) -> dict[str, Tensor]:
        """`parameters` of a task's module."""
        return parameters(self.models[task])

    def classes(self, task: str) -> tuple[str, ...]:
        """The names of a task's classes in the order of their ids; none for language modeling."""
        if not self.task_file.tasks[task].labelled:
            return ()
        return _class_names(self.models[task].config)


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter and persistent buffer by canonical name: ``base_model.…``, or the head's own name.

    A tied tensor is listed once, under its name in the base if it has one there.
    """
    prefix = model.base_model_prefix + "."
    named = {_canonical(name, prefix): tensor for name, tensor in model.state_dict(keep_vars=True).items()}
    listed: set[int] = set()
    result: dict[str, Tensor] = {}
    for name in sorted(named, key=lambda name: not name.startswith(BASE)):
        if id(named[name]) not in listed:
            listed.add(id(named[name]))
            result[name] = named[name]
    return result


def load(task_file: TaskFile) -> Source:
    """Load the model directory of a task file once per task, over shared parameters.

    New heads are drawn by the training seed. No code that a model directory brings is ever run.

    Raises:
        CompileError: the directory, a head or a training file can't be used, a weight isn't finite, none can be paged.
    """
    path = task_file.model
    _check_directory(path)
    with quiet_transformers():
        config = _call(path, AutoConfig.from_pretrained, path, trust_remote_code=False, local_files_only=True)
        _check_config(config, task_file)
        tokenizer = _load_tokenizer(path)
        config.pad_token_id = tokenizer.pad_token_id
        models: dict[str, PreTrainedModel] = {}
        shared: dict[str, Tensor] = {}
        for name, task in task_file.tasks.items():
            models[name] = _load_model(name, task, task_file, tokenizer.pad_token_id)
            _share(models[name], shared, path, with_head=not task.labelled)
    paged, resident = _sort_weights(models, task_file.block, path)
    return Source(task_file, path, config, tokenizer, models, paged, resident)


def _canonical(name: str, prefix: str) -> str:
    return BASE + name[len(prefix) :] if name.startswith(prefix) else name


def _class_names(config: PretrainedConfig) -> tuple[str, ...]:
    return tuple(str(config.id2label.get(number, f"LABEL_{number}")) for number in range(config.num_labels))


def _check_directory(path: Path) -> None:
    if not path.is_dir():
        raise CompileError(f"{path}: expected a model directory; a hub id must be downloaded first")
    if not (path / "config.json").is_file():
        raise CompileError(f"{path}: expected a model directory, found no config.json in it")
    for name in ("config.json", "tokenizer_config.json"):
        if (path / name).is_file():
            content = _call(path, lambda file=path / name: json.loads(file.read_text(encoding="utf-8")))
            if not isinstance(content, dict):
                raise CompileError(f"{path / name}: expected a JSON object, found {type(content).__name__}")
            if "auto_map" in content:
                raise CompileError(f"{path / name}: auto_map asks to run the directory's own code; that is refused")


def _check_config(config: PretrainedConfig, task_file: TaskFile) -> None:
    path = task_file.model
    if config.is_encoder_decoder:
        raise CompileError(f"{path}: expected an encoder or a decoder, found the encoder-decoder {config.model_type}")
    if getattr(config, "quantization_config", None) is not None:
        raise CompileError(f"{path}: expected float weights, found a quantised checkpoint")
    most = getattr(config, "max_position_embeddings", None)
    for name in task_file.tasks:
        length = task_file.max_length_of(name)
        if isinstance(most, int) and 0 < most < length:
            raise CompileError(f"tasks.{name}.max_length: expected at most the {most} tokens of {path}, found {length}")


def _load_tokenizer(path: Path) -> Any:
    tokenizer = _call(path, AutoTokenizer.from_pretrained, path, trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise CompileError(f"{path}: expected a fast tokenizer (tokenizer.json), found {type(tokenizer).__name__}")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise CompileError(f"{path}: expected a tokenizer with a padding or an end token, found neither")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    return tokenizer


def _load_model(name: str, task: TaskSpec, task_file: TaskFile, pad: int) -> PreTrainedModel:
    """The module of one task, not shared yet."""
    path = task_file.model
    options: dict[str, Any] = {"pad_token_id": pad}
    head = _load_head(name, task, task.head, path) if task.head is not None else None
    if task.labelled:
        names = _class_names(head.config) if head is not None else data.classes(name, task)
        options |= {
            "id2label": dict(enumerate(names)),
            "label2id": {label: number for number, label in enumerate(names)},
        }
    model, info = _from_pretrained(path, task.kind, task_file.training.seed, **options)
    if model.base_model is model:
        raise CompileError(f"{path}: expected a model with a head over a base model, found {type(model).__name__}")

    def may_lack(weight: str) -> bool:
        # transformers counts the pooler to the base, but a checkpoint without a classifier often has none.
        return task.labelled and (not weight.startswith(BASE) or (head is None and "pooler" in weight))

    _check_checkpoint(model, info, f"tasks.{name}: {path}", may_lack)
    if head is not None:
        _copy_head(head, model, name)
    _check_finite(model, name, path)
    if not task.labelled:
        _check_causal(model, path, name)
    return model


def _from_pretrained(path: Path, kind: TaskKind, seed: int, **options: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    arguments = {"trust_remote_code": False, "local_files_only": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _call(path, AutoConfig.from_pretrained, path, **arguments, **options)
        model, info = _call(
            path, CLASSES[kind].from_pretrained, path, config=config, output_loading_info=True,
            ignore_mismatched_sizes=True, **arguments,
        )  # fmt: skip
    return model.float().eval(), info


def _load_head(name: str, task: TaskSpec, directory: Path, path: Path) -> PreTrainedModel:
    """The checkpoint that brings a task's head."""
    _check_directory(directory)
    model, info = _from_pretrained(directory, task.kind, seed=0)
    ours, theirs = _model_type(path), model.config.model_type
    if ours != theirs:
        raise CompileError(f"tasks.{name}.head ({directory}): expected a head for {ours}, found one for {theirs}")
    names = _class_names(model.config)
    if len(set(names)) < max(2, len(names)):
        found = ", ".join(names)
        raise CompileError(f"tasks.{name}.head ({directory}): expected two or more different classes, found {found}")
    _check_checkpoint(model, info, f"tasks.{name}.head ({directory})", lambda weight: weight.startswith(BASE))
    return model


def _model_type(path: Path) -> str:
    return str(_call(path, AutoConfig.from_pretrained, path, local_files_only=True, trust_remote_code=False).model_type)


def _check_checkpoint(
    model: PreTrainedModel, info: dict[str, Any], where: str, may_lack: Callable[[str], bool]
) -> None:
    """Refuse weights that transformers filled with random numbers, except those that will be trained or copied."""
    prefix = model.base_model_prefix + "."
    absent = [*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])]
    # Before version 5, transformers names a headless checkpoint's weights without the prefix.
    known = model.state_dict()
    absent = [name if name in known else prefix + name for name in absent]
    for name in sorted(_canonical(name, prefix) for name in absent):
        if not may_lack(name):
            raise CompileError(f"{where}: expected the weight {name!r}, the checkpoint has none of that shape")


def _copy_head(head: PreTrainedModel, model: PreTrainedModel, name: str) -> None:
    theirs, ours = parameters(head), parameters(model)
    for key, tensor in ours.items():
        found = theirs.get(key)
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else list(found.shape)
            raise CompileError(f"tasks.{name}.head: expected {key!r} of shape {list(tensor.shape)}, found {shape}")
        if not key.startswith(BASE):
            tensor.data.copy_(found.data)
    if any(not torch.equal(theirs[key], tensor) for key, tensor in ours.items() if key.startswith(BASE)):
        _log.warning("tasks.%s.head was trained on other base weights than the model's: expect it to do badly", name)


def _check_causal(model: PreTrainedModel, path: Path, name: str) -> None:
    """An encoder with a language-model head sees the token that it should predict; its perplexity means nothing."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    changed = ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        first, second = (model(input_ids=i, attention_mask=mask).logits[:, :-1] for i in (ids, changed))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise CompileError(f"tasks.{name}: language-modeling needs a causal model, {path} looks at later tokens")


def _share(model: PreTrainedModel, shared: dict[str, Tensor], path: Path, with_head: bool) -> None:
    """Replace the model's tensors by those of the same name in ``shared``, and add those that aren't there yet."""
    swap: dict[int, Tensor] = {}
    for name, tensor in parameters(model).items():
        if with_head or name.startswith(BASE):
            first = shared.setdefault(name, tensor)
            if first.shape != tensor.shape:
                raise CompileError(f"{path}: {name!r} differs in shape between tasks")
            swap[id(tensor)] = first
    for module in model.modules():
        for slots in (module._parameters, module._buffers):
            slots.update({key: swap[id(tensor)] for key, tensor in slots.items() if id(tensor) in swap})


def _check_finite(model: PreTrainedModel, task: str, path: Path) -> None:
    for name, tensor in parameters(model).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CompileError(f"{path}: expected finite weights, found NaN or infinity in {name!r} (task {task})")


def _sort_weights(
    models: dict[str, PreTrainedModel], block: BlockShape, path: Path
) -> tuple[tuple[PagedWeightInfo, ...], dict[str, str]]:
    paged: dict[str, PagedWeightInfo] = {}
    resident: dict[str, str] = {}
    for model in models.values():
        reasons = _reasons(model, block)
        here = {info.name: info for info in _pageable(model, block) if info.name + ".weight" not in reasons}
        if paged and here.keys() != paged.keys():
            raise CompileError(f"{path}: {type(model).__name__} has other linear layers than another task's module")
        paged |= here
        resident |= reasons
    if not paged:
        reasons_found = ", ".join(sorted(set(resident.values())))
        raise CompileError(f"{path}: expected a linear layer to page, found none; the weights are: {reasons_found}")
    return tuple(paged.values()), resident


def _pageable(model: PreTrainedModel, block: BlockShape) -> Iterator[PagedWeightInfo]:
    """Linear layers inside repeated layers, as far as their kind and place say."""
    layers = {f"{name}.": number for number, name in enumerate(repeated_layers(model.base_model))}
    for name, module in model.base_model.named_modules():
        layer = next((number for prefix, number in layers.items() if name.startswith(prefix)), None)
        # A subclass may compute something else, or have its weight read past its forward.
        if layer is not None and type(module) is nn.Linear:
            yield PagedWeightInfo(BASE + name, layer, BlockGrid(module.out_features, module.in_features, block))


def repeated_layers(base: nn.Module) -> list[str]:
    """Names of the children of every outermost `nn.ModuleList`, in order."""
    layers: list[str] = []
    for name, module in base.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(tuple(f"{layer}." for layer in layers)):
            layers += [f"{name}.{child}" for child in range(len(module))]
    return layers


def _reasons(model: PreTrainedModel, block: BlockShape) -> dict[str, str]:
    """Why matrices stay resident, by canonical name; a pageable one is absent."""
    prefix = model.base_model_prefix + "."
    aliases: dict[int, list[str]] = {}
    owners: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for key, tensor in module._parameters.items():
            if tensor is not None:
                full = _canonical(f"{name}.{key}", prefix)
                aliases.setdefault(id(tensor), []).append(full)
                owners[full] = module
    grids = {info.name + ".weight": info.grid for info in _pageable(model, block)}
    reasons: dict[str, str] = {}
    for name, tensor in parameters(model).items():
        others = [other for other in aliases.get(id(tensor), []) if other != name]
        if tensor.ndim >= 2 and (reason := _reason(name, owners.get(name), grids.get(name), others)):
            reasons[name] = reason
    return reasons


def _reason(name: str, owner: nn.Module | None, grid: BlockGrid | None, others: list[str]) -> str | None:
    if isinstance(owner, nn.Embedding):
        return "embedding" + (f", tied to {', '.join(others)}" if others else "")
    if others:
        return f"tied to {', '.join(others)}"
    if not name.startswith(BASE):
        return "head"
    if type(owner) is not nn.Linear:
        return f"{type(owner).__name__}, not a plain linear layer" if owner is not None else "buffer"
    if grid is None:
        return "pooler" if "pooler" in name else "not in a repeated layer"
    if grid.out_features < grid.block.rows or grid.in_features < grid.block.cols:
        return f"smaller than a block of {grid.block}"
    return None


def _call(path: Path, function: Any, *arguments: Any, **options: Any) -> Any:
    """Whatever a library says about a broken model directory, as our error."""
    try:
        return function(*arguments, **options)
    except _LOADING_ERRORS as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CompileError(f"{path}: cannot be loaded: {reason}") from error
