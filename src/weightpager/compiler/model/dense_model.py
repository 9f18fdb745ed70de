"""The dense model: one module per task, all over the same base parameters, and which weights of it are paged."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from weightpager.backends.torch.architecture import (
    BASE,
    TransformersImageReader,
    has_picture_tower,
    position_table,
    quiet_transformers,
    set_generation,
)
from weightpager.bundle.format.manifest import FORMS, Pictures
from weightpager.bundle.format.picture_tower import TOWER, is_before_words
from weightpager.compiler import data
from weightpager.compiler.data import read_transitions
from weightpager.compiler.model.checkpoint import IN_MEMORY, Checkpoint, Scratch, class_names, widen
from weightpager.compiler.model.directory import ModelDirectory, call, load_generation
from weightpager.compiler.model.own_weights import Versions, check_tower, lay_over
from weightpager.compiler.model.paged_weights import (
    PagedWeightInfo,
    parameters,
    repeated_layers,
    share_of,
    sort_weights,
    tied_tensors,
)
from weightpager.compiler.model.parameter_format import ParameterFormat
from weightpager.compiler.model.picture_tower import drop_captures, picture_reader, pictures_of
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import TaskSpec, VisionSpec
from weightpager.errors import CompileError
from weightpager.readers.picture_reader import PictureReader
from weightpager.transitions import Transitions

_log = logging.getLogger(__name__)


def check_config(directory: ModelDirectory, task_file: TaskFile) -> None:
    """Refuse a kind of model that can't be compiled, and texts longer than it takes."""
    path, config = directory.path, directory.config
    if config.is_encoder_decoder:
        raise CompileError(f"{path}: expected an encoder or a decoder, found the encoder-decoder {config.model_type}")
    if getattr(config, "quantization_config", None) is not None:
        raise CompileError(f"{path}: expected float weights, found a quantised checkpoint")
    _check_pictures(directory, task_file)
    if task_file.takes_images:
        return
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    for name in task_file.tasks:
        length = task_file.max_length_of(name)
        if isinstance(most, int) and 0 < most < length:
            raise CompileError(f"tasks.{name}.max_length: expected at most the {most} tokens of {path}, found {length}")


def _check_pictures(directory: ModelDirectory, task_file: TaskFile) -> None:
    """Refuse tasks that a picture tower can't serve, and settings of one where there is none."""
    if not has_picture_tower(directory.config):
        if task_file.vision != VisionSpec():
            found = f"{directory.path}, {directory.config.model_type}"
            raise CompileError(f"vision: expected a model that reads pictures among its words, found {found}")
        return
    for name, task in task_file.tasks.items():
        if not FORMS[task.kind].picture_model:
            raise CompileError(
                f"tasks.{name}: expected text-generation, the one kind for a model that reads pictures among its words "
                f"({directory.path}), found {task.kind}"
            )


def classes_brought(task: TaskSpec) -> tuple[str, ...] | None:
    """The classes of the head that a task brings, by its configuration alone; None if it brings none.

    Raises:
        CompileError: the head's directory can't be used.
    """
    path = task.head or task.checkpoint
    if path is None or not task.labelled:
        return None
    with quiet_transformers():
        return class_names(ModelDirectory.open(path).config)


def load_module(
    name: str, task_file: TaskFile, directory: ModelDirectory, reads: Any
) -> tuple[Checkpoint, Checkpoint | None]:
    """A task's module over base weights of its own, not shared yet; and the checkpoint that the task brings, if any.

    Raises:
        CompileError: the model, the head or the checkpoint can't be used.
    """
    task = task_file.tasks[name]
    head = _brought(name, task, directory, reads)
    brought = head if task.checkpoint is not None else None
    options: dict[str, Any] = {} if task.takes_images else {"pad_token_id": directory.config.pad_token_id}
    if task.labelled:
        names = head.classes if head is not None else data.classes(name, task)
        own_order = class_names(directory.config)
        if head is None and sorted(own_order) == sorted(names):  # training sets out from the model's own head
            names = own_order
        options |= {
            "id2label": dict(enumerate(names)),
            "label2id": {label: number for number, label in enumerate(names)},
        }

    def may_lack(weight: str) -> bool:
        in_head, in_pooler = not weight.startswith(BASE), "pooler" in weight
        # transformers counts the pooler to the base, but a checkpoint without a classifier often has none.
        if brought is not None:
            return in_head or in_pooler
        return task.labelled and (in_head or (head is None and in_pooler))

    hint = "" if task.labelled else "; language-modeling needs a decoder that was saved with its head"
    where, seed = f"tasks.{name}: {directory.path}", task_file.training.seed
    checkpoint = Checkpoint.load(directory, task.kind, where, may_lack=may_lack, hint=hint, seed=seed, **options)
    if head is not None:
        checkpoint.take_head(head)
        if head is not brought and not checkpoint.has_base_of(head):
            text = "tasks.%s.head was trained on other base weights than the model's: expect it to do badly"
            _log.warning(text, name)
    most = None if task.takes_images else position_table(checkpoint.model)  # RoBERTa's begins behind its padding
    if most is not None and (length := task_file.max_length_of(name)) > most:
        raise CompileError(f"tasks.{name}.max_length: expected at most the model's {most} tokens, found {length}")
    return checkpoint, brought


def _brought(name: str, task: TaskSpec, model: ModelDirectory, reads: Any) -> Checkpoint | None:
    """The checkpoint that brings a task's head, or all of its weights."""
    path = task.head or task.checkpoint
    if path is None:
        return None
    directory, where = ModelDirectory.open(path), f"tasks.{name}.{'head' if task.head else 'checkpoint'} ({path})"
    ours, theirs = model.config.model_type, directory.config.model_type
    if task.checkpoint is not None:
        directory.check_same(model, reads, where)
    elif ours != theirs:
        raise CompileError(f"{where}: expected a head for {ours}, found one for {theirs}")

    def may_lack(weight: str) -> bool:
        return task.head is not None and weight.startswith(BASE)

    found = Checkpoint.load(directory, task.kind, where, may_lack=may_lack)
    return found.with_classes() if task.labelled else found


def check_causal(model: PreTrainedModel, where: str, directory: ModelDirectory) -> None:
    """Refuse an encoder with a language-model head, which sees what it should predict: its perplexity means nothing."""
    ids = torch.zeros(1, 4, dtype=torch.long)
    changed = ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        first, second = (model(input_ids=i, attention_mask=mask).logits[:, :-1] for i in (ids, changed))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise CompileError(f"{where}: language-modeling needs a causal model, {directory.path} looks at later tokens")


__all__ = ["DenseModel", "PagedWeightInfo", "load", "parameters", "repeated_layers"]


@dataclass(frozen=True)
class DenseModel:
    """The dense model that a compile starts from.

    Attributes:
        task_file: the task file that it was loaded for.
        config: the model directory's configuration, without any task's head.
        tokenizer: a fast tokenizer that pads on the right; None where tasks read images.
        models: an ordinary module per task, in float32 and evaluation mode. What lies in ``base_model`` is the very
            same Parameter in all of them, and so is a language model's head; but what a task's own checkpoint has
            otherwise is that task's own.
        paged: its paged weights, in the order in which the architecture registers them, which is that of execution.
        resident: every other tensor of two or more dimensions, by canonical name, and why it isn't paged.
        tied: parameters that modules use under several names: canonical name → the other ones.
        versions: paged weight → int8 [blocks, tasks]: tasks with the same number share a block's values. Weights that
            all tasks share are absent.
        images: the image processor; None where tasks read texts alone.
        pictures: how pictures stand in texts; None where they don't.
        own_tokenizer: the tokenizer as the directory has it, for the bundle; None where tasks read images alone.
        generation: how its decoders go on unless told otherwise: what a bundle keeps of it.
        scratch: the place where stages hold what is as large as the model.
        transitions: how often each task follows each other one; a base's tasks come first.
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
    images: TransformersImageReader | None = None
    pictures: Pictures | None = None
    own_tokenizer: Any = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    scratch: Scratch = IN_MEMORY
    transitions: Transitions = field(kw_only=True)

    def __getstate__(self) -> dict[str, Any]:
        for model in self.models.values() if self.pictures else ():
            drop_captures(model)
        return dict(vars(self))

    @property
    def reads(self) -> Any:
        """What turns a task's data into the model's inputs: the tokenizer, or the image reader."""
        return self.images if self.tokenizer is None else self.tokenizer

    @property
    def picture_reader(self) -> PictureReader | None:
        """What reads pictures among words, as a device does; None where there are none."""
        if self.pictures is None or self.images is None:
            return None
        return cast(PictureReader, call(self.path, picture_reader, self.images, self.pictures))

    def alone(self, task: str) -> DenseModel:
        """The model with one task's module, without what reads inputs: all that computing with it takes."""
        return replace(self, models={task: self.models[task]}, tokenizer=None, own_tokenizer=None, images=None)

    @property
    def tower(self) -> tuple[PagedWeightInfo, ...]:
        """The picture tower's paged weights; none without one."""
        return tuple(info for info in self.paged if info.name.startswith(TOWER)) if self.pictures else ()

    @property
    def language(self) -> tuple[PagedWeightInfo, ...]:
        """All other paged weights."""
        return self.paged[len(self.tower) :]

    @property
    def stretches(self) -> list[range]:
        """Numbers of layers that feed each other one by one: the picture tower's, if there is one, and the others'."""
        layers, of_tower = max(info.layer for info in self.paged) + 1, self.pictures.layers if self.pictures else 0
        return [part for part in (range(of_tower), range(of_tower, layers)) if part]

    @property
    def shares_tower(self) -> bool:
        """Whether all tasks have the same picture tower and connector, by the task file's word."""
        return self.pictures is not None and self.pictures.blocks == "shared"

    def may_differ(self, name: str) -> bool:
        """Whether tasks may have values of their own of a parameter or paged weight, by canonical name."""
        return not (self.shares_tower and is_before_words(name))

    @property
    def own(self) -> tuple[PagedWeightInfo, ...]:
        """The paged weights that `may_differ`."""
        return self.language if self.shares_tower else self.paged

    def sparsity_of(self, task: str) -> float:
        """The fraction of all paged weights' blocks that a task drops."""
        rest, tower = self.task_file.sparsity_of(task), self.task_file.tower_sparsity_of(task)
        if not self.tower or rest == tower:
            return rest
        here, there = (sum(info.grid.count for info in part) for part in (self.language, self.tower))
        return (here * rest + there * tower) / (here + there)

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

    @property
    def parameter_bytes(self) -> int:
        """Bytes of all parameters in float32, each counted once."""
        tensors = {id(tensor): tensor for task in self.models for tensor in self.parameters(task).values()}
        return sum(4 * tensor.numel() for tensor in tensors.values())

    @property
    def paged_bytes(self) -> int:
        """Bytes of one task's paged weights in float32; its calibration holds as much."""
        return sum(4 * info.elements for info in self.paged)

    def brings_head(self, task: str) -> bool:
        """Whether the model's directory has a head of the task's kind for its very classes."""
        of_kind = type(self.models[task]).__name__ in (self.config.architectures or ())
        return of_kind and set(self.classes(task)) == set(class_names(self.config))


def load(
    task_file: TaskFile, place: Callable[[DenseModel], Scratch] = lambda _: IN_MEMORY, old: Transitions | None = None
) -> DenseModel:
    """Load the model directory of a task file once per task, over shared parameters.

    New heads are drawn by the training seed. No code that a model directory brings is ever run. ``place`` is asked
    where the model is held, before its values are read into memory; ``old`` are the transitions of a base's tasks.

    Raises:
        CompileError: the directory, a head, a checkpoint or a training file can't be used, a weight isn't finite, none
            can be paged.
        ConfigError: the trace can't be used.
    """
    path, transitions = task_file.model, read_transitions(task_file, old)
    with quiet_transformers():
        directory = ModelDirectory.open(path)
        check_config(directory, task_file)
        towered = has_picture_tower(directory.config)
        images = directory.images() if task_file.takes_images or towered else None
        own_tokenizer = None if task_file.takes_images else directory.tokenizer()
        generation = load_generation(path)  # also without a language model: one may be added later
        tokenizer = copy.deepcopy(own_tokenizer)
        if tokenizer is not None:
            tokenizer.padding_side = tokenizer.truncation_side = "right"
            directory.config.pad_token_id = directory.padding(tokenizer)
        models: dict[str, PreTrainedModel] = {}
        checkpoints: dict[str, dict[str, Tensor]] = {}
        shared: dict[str, Tensor] = {}
        for name, task in task_file.tasks.items():
            checkpoint, brought = load_module(name, task_file, directory, tokenizer or images)
            models[name] = checkpoint.share(shared, with_head=not task.labelled and brought is None)
            # What a bundle doesn't keep would be in the dense model's scores alone.
            set_generation(models[name], GenerationConfig(**generation) if generation else None)
            if brought is not None:
                checkpoints[name] = {key: tensor.float() for key, tensor in brought.parameters.items()}
    paged, resident = sort_weights(models, task_file.block, path)
    if (small := share_of(models, paged, resident)).is_small:
        _log.warning("%s: paged is %s", path, small.words)
    tied = {name: others for model in models.values() for name, others in tied_tensors(model).items()}
    config, pictures = directory.config, None
    if towered and images is not None:
        first = next(iter(models.values()))
        pictures = call(path, pictures_of, first, tokenizer, images, path, task_file.vision.blocks)
        call(path, picture_reader, images, pictures)  # before anything takes long
    source = DenseModel(
        task_file, path, config, tokenizer, models, paged, resident, tied,
        images=images, pictures=pictures, own_tokenizer=own_tokenizer, generation=generation, transitions=transitions,
    )  # fmt: skip
    source = replace(source, scratch=place(source))
    widen(models.values(), source.scratch)
    for name, task in task_file.tasks.items():
        if not task.labelled:
            check_causal(models[name], f"tasks.{name}", directory)
    form = ParameterFormat.of(config, models, task_file.dtype, task_file.block)
    versions = lay_over(models, checkpoints, paged, task_file.tolerance, form)
    if source.shares_tower:
        check_tower(models, shared, versions)
    return replace(source, versions=versions)
