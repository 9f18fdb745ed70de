"""A compile's data: rows of each task, split, read into batches, with what is doubtful said."""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain
from typing import Any

import tokenizers
import torch
from torch import Tensor

from weightpager.bundle.format.manifest import Generation, TaskKind
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError
from weightpager.readers.picture_reader import PictureReader
from weightpager.readers.tokenizer import NO_DEFAULT, Encoded, Tokenizer, begin_ids
from weightpager.task_data import completions, images, texts
from weightpager.task_data.batches import EVAL_BATCH, Batches, Labelled, batched
from weightpager.task_data.completions import Asked, CompletionExample
from weightpager.task_data.held_out import Item, checked_labels, items_reader, split_label
from weightpager.task_data.images import Picture
from weightpager.task_data.row_files import label_ids
from weightpager.task_data.texts import Example
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions

PIXELS = "pixel_values"
"""The input that holds images, or the pictures in a batch's texts; there is none where no text has a picture."""


@dataclass(frozen=True)
class Batch:
    """Model inputs and labels.

    Texts are ``input_ids`` and ``attention_mask``, each ``[B, L]``; images are ``pixel_values``, ``[B, C, H, W]``, or
    where they stand among words ``[pictures, C, H, W]``, in the order of their places.
    Labels are ``[B]`` where texts or images are classified, else ``[B, L]``. For language modeling they are the input
    ids, of completions alone where there are prompts; its `Kind` shifts them. Where prompts are to be answered,
    ``wanted`` has the answers, and labels mean nothing.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    wanted: tuple[str, ...] = ()

    @classmethod
    def of(cls, arrays: Labelled) -> Batch:
        """A batch over numpy's arrays, which aren't copied."""
        inputs, labels = arrays
        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if isinstance(labels, tuple):
            return cls(tensors, torch.zeros(len(labels), dtype=torch.long), labels)
        return cls(tensors, torch.from_numpy(labels))

    def arrays(self) -> Labelled:
        """The batch as numpy's arrays, not copied; its tensors must be on the CPU."""
        return {name: tensor.numpy() for name, tensor in self.inputs.items()}, self.wanted or self.labels.numpy()

    @property
    def items(self) -> int:
        """Texts, windows or images."""
        return len(self.labels)

    @property
    def tokens(self) -> Tensor | None:
        """Bool ``[B, L]``, False at padding; None for images, which have none."""
        mask = self.inputs.get("attention_mask")
        return None if mask is None else mask.bool()

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return Batch(
            {name: tensor.to(device) for name, tensor in self.inputs.items()}, self.labels.to(device), self.wanted
        )


FEW = 10
"""Training examples below which a warning is given."""

SHARE = 0.05
"""Share of held-out items that another split may have, too: short messages repeat by nature."""

CUT = 0.05
"""Share of training texts that may be cut without a warning."""


def of_labels(classes: Sequence[str]) -> Iterator[str]:
    """Labels that look alike to a reader."""
    first: dict[str, str] = {}
    for label in classes:
        like = first.setdefault(" ".join(label.split()).casefold(), label)
        if like != label:
            yield f"the labels {like!r} and {label!r} differ by blanks or case only, and count as two"


def of_few(train: Sequence[Item]) -> Iterator[str]:
    """Too little to learn from."""
    if len(train) < FEW:
        yield f"{len(train)} examples teach a task little, and its figures mean little; {FEW} are few already"


def of_length(train: Sequence[Item], max_length: int, key: str) -> Iterator[str]:
    """Texts that a task reads only a part of; ``key`` is that of its ``max_length`` in the task file."""
    lengths = sorted(item.length + item.cut for item in train if isinstance(item, Example))
    longer, may_be_cut = sum(length > max_length for length in lengths), int(CUT * len(lengths))
    if longer > may_be_cut:
        yield (
            f"{longer} of {len(lengths)} texts have more tokens than max_length {max_length}: they are cut there, and "
            f"texts in use will be; set {key} to {lengths[-1 - may_be_cut]}, or to what the model reads if that is less"
        )


def of_joints(train: Sequence[Item]) -> Iterator[str]:
    """Completions that nothing parts from the last word of their prompts, as most are not meant to be."""
    joined = sum(isinstance(item, CompletionExample) and item.in_a_word for item in train)
    if 2 * joined > len(train):
        yield (
            f"{joined} of {len(train)} completions go on with the last word of their prompts, since nothing is put "
            "between: begin completions that are words of their own with a blank or a new line"
        )


def of_template(asked: Asked | None) -> Iterator[str]:
    """Conversations without the template that a model of conversations comes with."""
    if asked is not None and asked.generation.prompts == "chat" and asked.tokenizer.chat_template is None:
        yield (
            "the model has no chat template: the messages' texts are read instead, each with a new line behind it, and "
            "their roles are not"
        )


def of_held_out(used: Sequence[Item], held_out: Sequence[Item], split: str = "training") -> Iterator[str]:
    """Held-out items, or prompts, that were used before as items of another split."""
    known = set(map(_content, used))
    seen = sum(_content(item) in known for item in held_out)
    if seen > SHARE * len(held_out):
        yield (
            f"{seen} of {len(held_out)} examples are {split} examples too: what is measured on them is too good; "
            "take them out of one of the two files"
        )


def _content(item: Item) -> Hashable:
    """What the model sees of it; of a prompt with a completion the prompt alone, with its pictures."""
    if isinstance(item, Picture):
        return item.path.resolve()
    if isinstance(item, CompletionExample):
        return item.prompt, tuple(picture.key for picture in item.pictures)
    return tuple(item.tokens)


@dataclass(frozen=True)
class TransformersTokens:
    """Tokens by a fast tokenizer. Implements `weightpager.task_data.texts.TextTokens`."""

    tokenizer: Any

    @property
    def begin_ids(self) -> tuple[int, ...]:
        return begin_ids(self.tokenizer.backend_tokenizer)

    @property
    def end_id(self) -> int | None:
        found: int | None = self.tokenizer.eos_token_id
        return found

    def encode_all(self, texts: Sequence[str], *, most: int | None = None, special: bool = True) -> list[Encoded]:
        encoded = self.tokenizer(
            list(texts),
            truncation=most is not None,
            max_length=most,
            add_special_tokens=special,
            verbose=False,
        )
        return [Encoded.of(found) for found in encoded.encodings]


def reader_of(tokenizer: Any, pictures: PictureReader | None = None) -> Tokenizer:
    """What a device reads of a tokenizer of transformers, and with ``pictures`` among the words.

    Raises:
        CompileError: the tokenizer doesn't read the pictures' placeholder as a special token.
    """
    inner = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default", NO_DEFAULT)
    settings = {"model_max_length": tokenizer.model_max_length, "split_special_tokens": tokenizer.split_special_tokens}
    try:
        return Tokenizer(inner, {**tokenizer.special_tokens_map, **settings}, template, pictures)
    except ValueError as error:
        raise CompileError(f"model: {error}") from error


_log = logging.getLogger(__name__)

NEW_TOKENS = 64
"""The most tokens of a generated text, unless the task file says so."""

_GROUPED = 8
"""Training batches whose examples are sorted by length; few, so that the order stays random."""

_GROUPED_PROMPTS = 32
"""The same of prompts with completions, whose lengths differ more (decision 63)."""

Collate = Callable[[Sequence[Any]], Batch]
"""Makes one batch of items."""


@dataclass(frozen=True)
class TaskData:
    """A task's examples: tokenised texts, or images.

    Attributes:
        collate: makes a batch of some examples.
        asked: has prompts answered; None where the metric is one of logits.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    eval: tuple[Item, ...]
    validation: tuple[Item, ...] | None
    collate: Collate
    asked: Asked | None = None

    def calibration(self, items: int, size: int, seed: int = 0, tokens: int | None = None) -> Sequence[Batch]:
        """Batches of ``items`` training examples (all, if there are fewer) drawn by ``seed``.

        With ``tokens``, no more examples than hold so many tokens, an image counting as one. They are taken in the
        order in which they were drawn: batches are sorted by length, and the first ones would be the shortest texts.
        """
        drawn = random.Random(seed).sample(self.train, min(items, len(self.train)))  # noqa: S311
        if tokens is not None:
            reached = list(accumulate(example.length for example in drawn))
            drawn = drawn[: bisect_left(reached, tokens) + 1]
        return self.batches(drawn, size)

    def batches(self, examples: Sequence[Item], size: int) -> Batches[Batch]:
        """`batched` for this task's kind."""
        return batched(examples, size, self.kind, self.collate)

    def held_out(self) -> Batches[Batch]:
        """Batches of all held-out examples, for `evaluate`: where prompts are to be answered, of these alone."""
        if self.asked is None:
            return self.batches(self.eval, EVAL_BATCH)
        tokenizer = self.asked.tokenizer
        return completions.prompts(self.eval, EVAL_BATCH, tokenizer.pad_id or 0, tokenizer.pictures).mapped(Batch.of)

    def shuffled(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """Training batches without end: each example once, in an order drawn by ``seed``, then again in another.

        Within a few batches, those of similar length go together: padding costs as much as text does. They are
        no more than the data: of several rounds, sorted, a batch would be copies of one example.
        """
        drawn, size = random.Random(seed), min(size, len(self.train))  # noqa: S311
        most = _GROUPED_PROMPTS if self.asked is not None else _GROUPED
        together = size * min(most, len(self.train) // size)
        order: list[Item] = []
        while True:
            while len(order) < together:
                order += drawn.sample(self.train, len(self.train))
            group = sorted(order[:together], key=lambda example: example.length)
            order = order[together:]
            batches = [group[start : start + size] for start in range(0, len(group), size)]
            for batch in drawn.sample(batches, len(batches)):
                yield self.collate(batch)


def classes(name: str, task: TaskSpec) -> tuple[str, ...]:
    """The labels of the training split, sorted: whole numbers by value, anything else as text.

    Raises:
        CompileError: the file can't be used, or has fewer than two labels.
    """
    path = task.splits["train"]
    where = split_label(name, "train", path)
    return _sorted(checked_labels(task.kind, task.columns, path, where, None), where)


def _sorted(rows: Sequence[Sequence[str | int]], where: str) -> tuple[str, ...]:
    """The different labels of all rows, in the order of `classes`."""
    labels = {str(label): label for row in rows for label in row}
    if len(labels) < 2:
        raise CompileError(f"{where}: expected at least two different labels, found {', '.join(labels) or 'none'}")
    numbered = all(isinstance(label, int) for label in labels.values())
    return tuple(sorted(labels, key=lambda name: (int(labels[name]), name) if numbered else (0, name)))


def check(name: str, task: TaskSpec, known: Sequence[str] | None) -> None:
    """Refuse data that can't be used, as far as that shows without the model: its files, columns and labels.

    ``known`` are the classes of the head that the task brings; None where the training split names them.

    Raises:
        CompileError: says what was expected.
        ConfigError: the data are images, and Pillow isn't installed.
    """
    for split, path in task.splits.items():
        where, items = split_label(name, split, path), None if split == "train" else task.items
        labels = checked_labels(task.kind, task.columns, path, where, items)
        if task.labelled:
            known = _sorted(labels, where) if known is None else known  # the training split is the first
            label_ids(labels, known, where)


def load(
    name: str,
    task: TaskSpec,
    reads: Any,
    known: Sequence[str],
    max_length: int,
    pictures: PictureReader | None = None,
) -> TaskData:
    """Read every split of a task, and tokenise texts; what looks like a mistake in them is warned of.

    Args:
        name: of the task.
        task: what the task file says of it.
        reads: the tokenizer, or for images an `ImageReader`.
        known: the task's classes in the order of their ids.
        max_length: of texts, in tokens.
        pictures: what reads those among the words; None for a model that reads none there.

    Raises:
        CompileError: as `TextReader.read` or `pictures.read`.
    """
    reader: Any = reads
    if not task.takes_images:
        reader = reader_of(reads, pictures) if task.completes else TransformersTokens(reads)
    read = items_reader(task.kind, task.columns, reader, known, max_length)
    collated: Collate
    if task.takes_images:
        collated = partial(_collate_pictures, reader=reads)
    elif task.completes:
        collated = partial(_collate_completions, pad=reads.pad_token_id, pictures=pictures)
    else:
        collated = partial(collate_texts, pad=reads.pad_token_id)

    splits = {
        split: read(path, split_label(name, split, path), None if split == "train" else task.items)
        for split, path in task.splits.items()
    }
    asked = _asked(name, task, reader, splits) if task.completes else None
    data = TaskData(task.kind, tuple(known), splits["train"], splits["eval"], splits.get("validation"), collated, asked)
    _warn(name, task, data, max_length)
    return data


def _asked(name: str, task: TaskSpec, reader: Tokenizer, splits: Mapping[str, Sequence[Any]]) -> Asked:
    """How a task's prompts are answered; they must be of one form in all splits."""
    forms = {split: completions.form(examples) for split, examples in splits.items() if examples}
    if len(set(forms.values())) > 1:
        found = ", ".join(f"{form} in {split}" for split, form in forms.items())
        expected = "prompts of one form in all splits, texts (plain) or messages (chat)"
        raise CompileError(f"tasks.{name}: expected {expected}, found {found}")
    train, most = splits["train"], task.max_new_tokens or NEW_TOKENS
    longer = sum(len(x.tokens) - len(x.prompt) - (x.tokens[-1] == reader.end_id) > most for x in train)
    if longer:
        text = "tasks.%s: %d of %d completions have more than max_new_tokens %d: answers will be cut there"
        _log.warning(text, name, longer, len(train), most)
    generation = Generation(prompts=forms["train"], max_new_tokens=most, metrics=list(task.wanted_metrics))
    return Asked(reader, generation)


def _warn(name: str, task: TaskSpec, data: TaskData, max_length: int) -> None:
    key = f"{'calibration' if task.max_length is None else f'tasks.{name}'}.max_length"
    validation = data.validation or ()
    warnings = {
        "train": (
            of_labels(data.classes),
            of_few(data.train),
            of_length(data.train, max_length, key),
            of_joints(data.train),
            of_template(data.asked),
        ),
        "eval": (of_held_out(data.train, data.eval), of_held_out(validation, data.eval, "validation")),
        "validation": (of_held_out(data.train, validation),),
    }
    for split, path in task.splits.items():
        for line in chain.from_iterable(warnings[split]):
            _log.warning("%s: %s", split_label(name, split, path), line)


def collate_texts(examples: Sequence[Any], pad: int) -> Batch:
    """One batch, padded on the right to its longest example."""
    return Batch.of(texts.collate(examples, pad))


def _collate_completions(examples: Sequence[Any], pad: int, pictures: PictureReader | None) -> Batch:
    return Batch.of(completions.collate(examples, pad, pictures))


def _collate_pictures(pictures: Sequence[Any], reader: Any) -> Batch:
    return Batch.of(images.collate(pictures, reader))


def read_transitions(task_file: TaskFile, old: Transitions | None = None) -> Transitions:
    """Read the task file's trace once: it may be an engine's history, which grows.

    Without a trace every task is as likely as any other to come next. ``old`` are those of a base's tasks, which come
    first.

    Raises:
        ConfigError: the trace can't be used.
    """
    new = tuple(task_file.tasks)
    if task_file.transitions is not None:
        names = new if old is None else (*old.tasks, *new)
        return Transitions.from_trace(names, read_trace(task_file.transitions, names))
    return Transitions.uniform(new) if old is None else old.extended(new)
