"""The dense model: one module per task, all over the same base parameters, and which weights of it are paged."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.bundle.report.paged_share import PagedShare
from weightpager.compiler import data
from weightpager.compiler.model.checkpoint import (
    check_causal,
    check_classes,
    check_complete,
    check_config,
    check_finite,
    check_known,
    check_positions,
    check_same_architecture,
    check_same_pixels,
    check_same_words,
    class_names,
    from_pretrained,
    load_config,
    load_image_reader,
    load_tokenizer,
    padding_of,
)
from weightpager.compiler.model.directory import check_directory, load_generation
from weightpager.compiler.model.kind import check_base
from weightpager.compiler.model.named_parameters import parameters, replace_tensors
from weightpager.compiler.model.own_weights import Versions, lay_over
from weightpager.compiler.model.paged_weights import (
    PagedWeightInfo,
    repeated_layers,
    share_of,
    sort_weights,
    tied_tensors,
)
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.engine.model.architecture import BASE, quiet_transformers
from weightpager.engine.model.image_reader import ImageReader
from weightpager.errors import CompileError

__all__ = ["PagedWeightInfo", "Source", "load", "parameters", "repeated_layers"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The dense model.

    Attributes:
        task_file: what it was loaded for.
        config: of the model directory, without any task's head.
        tokenizer: fast, padding on the right; None where tasks read images.
        models: per task an ordinary module, in float32 and evaluation mode. What lies in ``base_model`` is the very
            same Parameter in all of them, and so is a language model's head; but what a task's own checkpoint has
            otherwise is that task's own.
        paged: in the order in which the architecture registers them, which is that of execution.
        resident: every other tensor of two or more dimensions, by canonical name, and why it isn't paged.
        tied: parameters that modules use under several names: canonical name → the other ones.
        versions: paged weight → int8 [blocks, tasks]: tasks with the same number share a block's values. Weights that
            all tasks share are absent.
        images: what reads images; None where tasks read texts.
        own_tokenizer: as the directory has it, for the bundle; None where tasks read images.
        generation: how its decoders go on unless told otherwise: what a bundle keeps of it.
    """

    task_file: TaskFile
    path: Path
    config: PretrainedConfig
    tokenizer: Any
    models: dict[str, PreTrainedModel]
    paged: tuple[PagedWeightInfo, ...]
    resident: dict[str, str]
    tied: Mapping[str, Sequence[str]] = field(default_factory=dict)
    versions: Mapping[str, Versions] = field(default_factory=dict)
    images: ImageReader | None = None
    own_tokenizer: Any = None
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads(self) -> Any:
        """What turns a task's data into the model's inputs: the tokenizer, or the image reader."""
        return self.tokenizer if self.images is None else self.images

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
        return class_names(self.models[task].config)

    def brings_head(self, task: str) -> bool:
        """Whether the model's directory has a head of the task's kind for its very classes."""
        config = load_config(self.path)
        of_kind = type(self.models[task]).__name__ in (config.architectures or ())
        return of_kind and set(self.classes(task)) == set(class_names(config))


def load(task_file: TaskFile) -> Source:
    """Load the model directory of a task file once per task, over shared parameters.

    New heads are drawn by the training seed. No code that a model directory brings is ever run.

    Raises:
        CompileError: the directory, a head, a checkpoint or a training file can't be used, a weight isn't finite, none
            can be paged.
    """
    path = task_file.model
    check_directory(path)
    with quiet_transformers():
        config = load_config(path)
        check_config(config, task_file)
        images = load_image_reader(path, config) if task_file.takes_images else None
        own_tokenizer = load_tokenizer(path) if images is None else None
        tokenizer = copy.deepcopy(own_tokenizer)
        if tokenizer is not None:
            tokenizer.padding_side = tokenizer.truncation_side = "right"
            words = getattr(config.get_text_config(), "vocab_size", tokenizer.pad_token_id + 1)
            check_known(tokenizer, tokenizer.pad_token_id, words, str(path))
            config.pad_token_id = padding_of(config, tokenizer, words, path)
        models: dict[str, PreTrainedModel] = {}
        checkpoints: dict[str, PreTrainedModel] = {}
        shared: dict[str, Tensor] = {}
        for name, task in task_file.tasks.items():
            if task.checkpoint is not None:
                checkpoints[name] = _load_checkpoint(name, task, task.checkpoint, config, images or tokenizer)
            models[name] = _load_model(
                name, task, task_file, getattr(config, "pad_token_id", None), checkpoints.get(name)
            )
            _share(models[name], shared, path, with_head=not task.labelled and task.checkpoint is None)
    paged, resident = sort_weights(models, task_file.block, path)
    _warn_of_small_share(share_of(models, paged, resident), path)
    tied = {name: others for model in models.values() for name, others in tied_tensors(model).items()}
    form = ParameterFormat.of(config, models, task_file.dtype)
    versions = lay_over(models, checkpoints, paged, task_file.tolerance, form)
    # Also without a language model among the tasks: one may be added later.
    generation = load_generation(path)
    return Source(
        task_file, path, config, tokenizer, models, paged, resident, tied, versions, images, own_tokenizer, generation
    )


def _warn_of_small_share(found: PagedShare, path: Path) -> None:
    if found.is_small:
        _log.warning("%s: paged is %s", path, found.words)


def _load_model(
    name: str, task: TaskSpec, task_file: TaskFile, pad: int | None, checkpoint: PreTrainedModel | None
) -> PreTrainedModel:
    """The module of one task, not shared yet: the model's base weights, under the head that the task brings."""
    path = task_file.model
    options: dict[str, Any] = {} if task.takes_images else {"pad_token_id": pad}
    head = _load_head(name, task, task.head, path) if task.head is not None else checkpoint
    if task.labelled:
        names = class_names(head.config) if head is not None else _classes(name, task, path)
        options |= {
            "id2label": dict(enumerate(names)),
            "label2id": {label: number for number, label in enumerate(names)},
        }
    model, info = from_pretrained(path, task.kind, task_file.training.seed, **options)
    check_base(model, path)

    def may_lack(weight: str) -> bool:
        if checkpoint is not None:
            return not weight.startswith(BASE) or "pooler" in weight
        # transformers counts the pooler to the base, but a checkpoint without a classifier often has none.
        return task.labelled and (not weight.startswith(BASE) or (head is None and "pooler" in weight))

    hint = "" if task.labelled else "; language-modeling needs a decoder that was saved with its head"
    check_complete(model, info, f"tasks.{name}: {path}", may_lack, hint)
    if head is not None:
        _copy_head(head, model, f"tasks.{name}.{'head' if checkpoint is None else 'checkpoint'}")
    if task.head is not None and head is not None:
        _warn_of_other_base(head, model, name)
    check_finite(model, name, path)
    if not task.takes_images:
        check_positions(model, task_file.max_length_of(name), f"tasks.{name}")
    if not task.labelled:
        check_causal(model, path, name)
    return model


def _classes(name: str, task: TaskSpec, path: Path) -> tuple[str, ...]:
    """A task's classes; in the order of the model's own head if that has the same, since training sets out from it."""
    found, own = data.classes(name, task), class_names(load_config(path))
    return own if sorted(own) == sorted(found) else found


def _load_head(name: str, task: TaskSpec, directory: Path, path: Path) -> PreTrainedModel:
    """The checkpoint that brings a task's head."""
    check_directory(directory)
    where = f"tasks.{name}.head ({directory})"
    model, info = from_pretrained(directory, task.kind, seed=0)
    ours, theirs = load_config(path).model_type, model.config.model_type
    if ours != theirs:
        raise CompileError(f"{where}: expected a head for {ours}, found one for {theirs}")
    check_classes(model.config, where)
    check_complete(model, info, where, lambda weight: weight.startswith(BASE))
    check_finite(model, name, directory)
    return model


def _load_checkpoint(
    name: str, task: TaskSpec, directory: Path, config: PretrainedConfig, reads: Any
) -> PreTrainedModel:
    """The checkpoint that brings all weights of a task."""
    where = f"tasks.{name}.checkpoint ({directory})"
    check_directory(directory)
    check_same_architecture(config, load_config(directory), where)
    if task.takes_images:
        check_same_pixels(reads, directory, config, where)
    else:
        check_same_words(reads, directory, where)
    model, info = from_pretrained(directory, task.kind, seed=0)
    if task.labelled:
        check_classes(model.config, where)
    check_complete(model, info, where, lambda _weight: False)
    check_finite(model, name, directory)
    return model


def _copy_head(head: PreTrainedModel, model: PreTrainedModel, where: str) -> None:
    theirs = parameters(head)
    for key, tensor in parameters(model).items():
        found = theirs.get(key)
        if found is None or found.shape != tensor.shape:
            shape = "nothing" if found is None else list(found.shape)
            raise CompileError(f"{where}: expected {key!r} of shape {list(tensor.shape)}, found {shape}")
        if not key.startswith(BASE):
            tensor.data.copy_(found.data)


def _warn_of_other_base(head: PreTrainedModel, model: PreTrainedModel, name: str) -> None:
    theirs, ours = parameters(head), parameters(model)
    if any(not torch.equal(theirs[key], tensor) for key, tensor in ours.items() if key.startswith(BASE)):
        _log.warning("tasks.%s.head was trained on other base weights than the model's: expect it to do badly", name)


def _share(model: PreTrainedModel, shared: dict[str, Tensor], path: Path, with_head: bool) -> None:
    """Replace the model's tensors by those of the same name in ``shared``, and add those that aren't there yet."""
    swap: dict[int, Tensor] = {}
    for name, tensor in parameters(model).items():
        if with_head or name.startswith(BASE):
            first = shared.setdefault(name, tensor)
            if first.shape != tensor.shape:
                raise CompileError(f"{path}: {name!r} differs in shape between tasks")
            swap[id(tensor)] = first
    replace_tensors(model, swap)
