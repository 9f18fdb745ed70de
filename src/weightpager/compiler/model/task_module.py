"""One task's module: the model's base weights, under the head that the task brings or will train."""

from __future__ import annotations

import logging
from typing import Any

import torch
from transformers import PreTrainedModel

from weightpager.backends.torch.model.architecture import BASE, position_table, quiet_transformers
from weightpager.compiler import data
from weightpager.compiler.model.checkpoint import Checkpoint, class_names
from weightpager.compiler.model.directory import ModelDirectory
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError

_log = logging.getLogger(__name__)


def check_config(directory: ModelDirectory, task_file: TaskFile) -> None:
    """Refuse a kind of model that can't be compiled, and texts longer than it takes."""
    path, config = directory.path, directory.config
    if config.is_encoder_decoder:
        raise CompileError(f"{path}: expected an encoder or a decoder, found the encoder-decoder {config.model_type}")
    if getattr(config, "quantization_config", None) is not None:
        raise CompileError(f"{path}: expected float weights, found a quantised checkpoint")
    if task_file.takes_images:
        return
    most = getattr(config, "max_position_embeddings", None)
    for name in task_file.tasks:
        length = task_file.max_length_of(name)
        if isinstance(most, int) and 0 < most < length:
            raise CompileError(f"tasks.{name}.max_length: expected at most the {most} tokens of {path}, found {length}")


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

    Args:
        name: of the task.
        task_file: with it.
        directory: of the model.
        reads: the model's tokenizer or image reader.

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
    if not task.takes_images:
        _check_positions(checkpoint.model, task_file.max_length_of(name), f"tasks.{name}")
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


def _check_positions(model: PreTrainedModel, length: int, where: str) -> None:
    """Refuse texts longer than a table of positions that, as RoBERTa's, begins behind its padding."""
    most = position_table(model)
    if most is not None and length > most:
        raise CompileError(f"{where}.max_length: expected at most the model's {most} tokens, found {length}")


def check_causal(model: PreTrainedModel, where: str, directory: ModelDirectory) -> None:
    """Refuse an encoder with a language-model head: it sees what it should predict, and its perplexity means nothing.

    Raises:
        CompileError: it is one.
    """
    ids = torch.zeros(1, 4, dtype=torch.long)
    changed = ids.clone()
    changed[0, -1] = 1
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        first, second = (model(input_ids=i, attention_mask=mask).logits[:, :-1] for i in (ids, changed))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-4):
        raise CompileError(f"{where}: language-modeling needs a causal model, {directory.path} looks at later tokens")
