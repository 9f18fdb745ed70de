"""Task data: files of texts and labels, or images -> examples -> batches."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch

from weightpager.bundle.manifest import TaskEntry, TaskKind
from weightpager.compiler import pictures
from weightpager.compiler.pictures import Picture
from weightpager.compiler.rows import FORMATS, hashed, label_ids, labels_of, read_rows, texts_of, words_of
from weightpager.compiler.task_sections import TaskSpec
from weightpager.engine.word_pieces import word_starts
from weightpager.errors import CompileError
from weightpager.evaluate import IGNORED, Batch

# Logits of a large vocabulary, not activations, decide how much memory a batch of a language model takes.
_LANGUAGE_MODEL_TOKENS = 2048

_GROUPED = 8
"""Training batches whose examples are sorted by length; few, so that the order stays random."""


@dataclass(frozen=True)
class Example:
    """One text: token ids, and its class, or one label per token (`IGNORED` where none counts)."""

    tokens: Sequence[int]
    label: int | Sequence[int]

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens)


Item = Example | Picture
Collate = Callable[[Sequence[Any]], Batch]
"""Makes one batch of items."""


@dataclass(frozen=True)
class TaskData:
    """A task's examples: tokenised texts, or images.

    Attributes:
        kind, classes: of the task.
        train, eval, validation: its splits.
        collate: makes a batch of examples.
    """

    kind: TaskKind
    classes: tuple[str, ...]
    train: tuple[Item, ...]
    eval: tuple[Item, ...]
    validation: tuple[Item, ...] | None
    collate: Collate

    def calibration(self, items: int, size: int, seed: int = 0) -> Sequence[Batch]:
        """Batches of ``items`` training examples (all, if there are fewer) drawn by ``seed``."""
        drawn = random.Random(seed).sample(self.train, min(items, len(self.train)))  # noqa: S311
        return self.batches(drawn, size)

    def batches(self, examples: Sequence[Item], size: int) -> Sequence[Batch]:
        """`batched`, of this task's kind."""
        return batched(examples, size, self.kind, self.collate)

    def shuffled(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """Training batches without end: each example once, in an order drawn by ``seed``, then again in another.

        Within a few batches, those of similar length go together: padding costs as much as text does.
        """
        drawn = random.Random(seed)  # noqa: S311
        order: list[Item] = []
        while True:
            while len(order) < size * _GROUPED:
                order += drawn.sample(self.train, len(self.train))
            group = sorted(order[: size * _GROUPED], key=lambda example: example.length)
            order = order[size * _GROUPED :]
            batches = [group[start : start + size] for start in range(0, len(group), size)]
            for batch in drawn.sample(batches, len(batches)):
                yield self.collate(batch)


class Batches(Sequence[Batch]):
    """Batches that are made whenever they are asked for: pixels of all images at once might not fit."""

    def __init__(self, parts: Sequence[Sequence[Item]], collate: Collate) -> None:
        self._parts = parts
        self._collate = collate

    def __len__(self) -> int:
        return len(self._parts)

    @overload
    def __getitem__(self, index: int) -> Batch: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> Batch | Batches:
        if isinstance(index, slice):
            return Batches(self._parts[index], self._collate)
        return self._collate(self._parts[index])


def batched(examples: Sequence[Item], size: int, kind: TaskKind, collate: Collate) -> Batches:
    """Every example once, sorted by length because padding costs as much as text does.

    Windows of a language model come in batches of at most 2048 tokens, or one by one.
    """
    if kind == "language-modeling":
        size = min(size, max(1, _LANGUAGE_MODEL_TOKENS // examples[0].length))
    ordered = sorted(examples, key=lambda example: example.length)
    return Batches([ordered[start : start + size] for start in range(0, len(ordered), size)], collate)


def collate(examples: Sequence[Example], pad: int) -> Batch:
    """One batch, padded on the right to its longest example."""
    length = max(len(example.tokens) for example in examples)
    ids = torch.full((len(examples), length), pad)  # [B, L]
    mask = torch.zeros_like(ids)
    per_token = not isinstance(examples[0].label, int)
    labels = torch.full(ids.shape if per_token else ids.shape[:1], IGNORED)
    for row, example in enumerate(examples):
        ids[row, : len(example.tokens)] = torch.tensor(example.tokens)
        mask[row, : len(example.tokens)] = 1
        if per_token:
            labels[row, : len(example.tokens)] = torch.tensor(example.label)
        else:
            labels[row] = torch.tensor(example.label)
    return Batch({"input_ids": ids, "attention_mask": mask}, labels)


def classes(name: str, task: TaskSpec) -> tuple[str, ...]:
    """The labels of the training split, sorted: whole numbers by value, anything else as text.

    Raises:
        CompileError: the file can't be used, or has fewer than two labels.
    """
    where = _where(name, "train", task.train)
    if task.takes_images:
        found = {str(label): label for _, label in pictures.listed(task.train, where, *task.columns)}
    else:
        rows = read_rows(task.train, where, task.label_column)
        nested = task.kind == "token-classification"
        found = {str(label): label for row in labels_of(rows, task.label_column, where, nested) for label in row}
    if len(found) < 2:
        raise CompileError(f"{where}: expected at least two different labels, found {', '.join(found) or 'none'}")
    numbered = all(isinstance(label, int) for label in found.values())
    return tuple(sorted(found, key=lambda name: (int(found[name]), name) if numbered else (0, name)))


def fingerprint(path: Path, where: str, kind: TaskKind, columns: tuple[str, str]) -> str:
    """A hash of a task's data in a file, or of all the images that it names.

    Raises:
        CompileError: an image isn't there, or a file can't be read.
    """
    return pictures.fingerprint(path, where, *columns) if kind == "image-classification" else hashed(path, where)


def load(name: str, task: TaskSpec, reads: Any, known: Sequence[str], max_length: int) -> TaskData:
    """Read every split of a task, and tokenise texts.

    Args:
        name: of the task.
        task: what the task file says of it.
        reads: the tokenizer, or for images an `ImageReader`.
        known: the task's classes in the order of their ids.
        max_length: of texts, in tokens.

    Raises:
        CompileError: as `Reader.read` or `pictures.read`.
    """
    read, collated = _reading(task.kind, task.columns, reads, tuple(known), max_length)

    def split(split: str, path: Path, items: int | None = None) -> tuple[Item, ...]:
        return read(path, _where(name, split, path), items)

    validation = split("validation", task.validation, task.items) if task.validation else None
    held_out = split("eval", task.eval, task.items)
    return TaskData(task.kind, tuple(known), split("train", task.train), held_out, validation, collated)


def load_eval(entry: TaskEntry, path: Path, reads: Any, size: int) -> Sequence[Batch]:
    """The held-out data of a bundle's task, as it was when the task was compiled; the file may have moved to ``path``.

    Raises:
        CompileError: as `load`, or the entry names no data.
    """
    if entry.eval is None:
        raise CompileError(f"{entry.name}: the bundle names no held-out data for this task")
    columns = (entry.eval.text, entry.eval.label)
    read, collated = _reading(entry.kind, columns, reads, tuple(entry.classes), entry.max_length or 0)
    examples = read(path, _where(entry.name, "eval", path), entry.eval.items)
    return batched(examples, size, entry.kind, collated)


def _reading(
    kind: TaskKind, columns: tuple[str, str], reads: Any, known: tuple[str, ...], max_length: int
) -> tuple[Callable[[Path, str, int | None], tuple[Item, ...]], Collate]:
    """What reads a file as `Reader.read` does, and what makes a batch of what was read."""
    if kind == "image-classification":

        def images(path: Path, where: str, most: int | None) -> tuple[Item, ...]:
            return pictures.read(path, where, columns, known, reads, most)

        return images, partial(pictures.collate, reader=reads)
    texts = Reader(kind, *columns, reads, known, max_length)
    return texts.read, partial(collate, pad=reads.pad_token_id)


@dataclass(frozen=True)
class Reader:
    """Reads files of one kind of task on texts.

    Attributes:
        text, label: names of the columns.
        tokenizer: a fast one.
        classes: in the order of their ids; empty for language modeling.
        max_length: tokens, special ones included, at which a text is cut; the length of a language model's windows.
    """

    kind: TaskKind
    text: str
    label: str
    tokenizer: Any
    classes: tuple[str, ...]
    max_length: int

    def read(self, path: Path, where: str, most: int | None = None) -> tuple[Example, ...]:
        """The first ``most`` examples of a file, or all; errors speak of ``where``, and of nothing behind these.

        Raises:
            CompileError: the file is empty or malformed, a column is missing, a text isn't text, a label isn't known.
        """
        readers = {
            "text-classification": self._texts,
            "token-classification": self._words,
            "language-modeling": self._windows,
        }
        return tuple(readers[self.kind](path, where, most))

    def _texts(self, path: Path, where: str, most: int | None) -> list[Example]:
        rows = read_rows(path, where, self.text, self.label, most=most)
        ids = label_ids(labels_of(rows, self.label, where, nested=False), self.classes, where)
        tokens = self._tokenised(texts_of(rows, self.text, where), where)["input_ids"]
        return [Example(text, label) for text, (label,) in zip(tokens, ids, strict=True)]

    def _words(self, path: Path, where: str, most: int | None) -> list[Example]:
        rows = read_rows(path, where, self.text, self.label, most=most)
        ids = label_ids(labels_of(rows, self.label, where, nested=True), self.classes, where)
        words = [words_of(row[self.text], where, number) for number, row in enumerate(rows, 1)]
        for number, (these, tags) in enumerate(zip(words, ids, strict=True), 1):
            if len(these) != len(tags):
                counts = f"{len(these)} tokens and {len(tags)} tags"
                raise CompileError(f"{where}: row {number}: expected one tag per token, found {counts}")
        encoded = self._tokenised([" ".join(these) for these in words], where, return_offsets_mapping=True)
        return [
            Example(pieces, first_pieces(these, tags, spans))
            for pieces, these, tags, spans in zip(
                encoded["input_ids"], words, ids, encoded["offset_mapping"], strict=True
            )
        ]

    def _windows(self, path: Path, where: str, most: int | None) -> list[Example]:
        column = self.text if path.suffix in FORMATS else "text"
        documents = texts_of(read_rows(path, where, column, whole_text=True), column, where)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        stream: list[int] = []
        for document in documents:
            if most is not None and len(stream) >= most * self.max_length:
                break
            tokens = self.tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"]
            stream += (end if stream else []) + tokens
        starts = range(0, len(stream) - self.max_length + 1, self.max_length)
        if not starts:
            expected = f"at least one window of {self.max_length} tokens"
            raise CompileError(f"{where}: expected {expected}, found {len(stream)} tokens")
        windows = [stream[start : start + self.max_length] for start in starts[:most]]
        return [Example(window, window) for window in windows]

    def _tokenised(self, texts: list[str], where: str, **options: bool) -> Any:
        encoded = self.tokenizer(texts, truncation=True, max_length=self.max_length, **options)
        for number, tokens in enumerate(encoded["input_ids"], 1):
            if not tokens:
                raise CompileError(f"{where}: row {number}: expected a text, found nothing to tokenise")
        return encoded


def first_pieces(words: Sequence[str], tags: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[int]:
    """One label per piece: a word's tag on its first piece, `IGNORED` elsewhere; ``spans`` as in `word_starts`."""
    return [IGNORED if word is None else tags[word] for word in word_starts(words, spans)]


def _where(name: str, split: str, path: Path) -> str:
    return f"tasks.{name}.{split} ({path})"
