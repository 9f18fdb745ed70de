"""Task data: the splits of a task, of texts or of images, and their batches."""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

from weightpager.bundle.format.manifest import FORMS, TaskEntry, TaskKind
from weightpager.compiler.data import doubts, images, texts
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.images import Picture
from weightpager.compiler.data.rows import hashed, labels_of, read_rows
from weightpager.compiler.data.texts import Example, TextReader
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError

_log = logging.getLogger(__name__)

# Logits of a large vocabulary, not activations, decide how much memory a batch of a language model takes.
_LANGUAGE_MODEL_TOKENS = 2048

EVAL_BATCH = 32
"""Texts or images in a batch while measuring."""

_GROUPED = 8
"""Training batches whose examples are sorted by length; few, so that the order stays random."""


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

    def batches(self, examples: Sequence[Item], size: int) -> Sequence[Batch]:
        """`batched` for this task's kind."""
        return batched(examples, size, self.kind, self.collate)

    def held_out(self) -> Sequence[Batch]:
        """Batches of all held-out examples."""
        return self.batches(self.eval, EVAL_BATCH)

    def shuffled(self, size: int, seed: int = 0) -> Iterator[Batch]:
        """Training batches without end: each example once, in an order drawn by ``seed``, then again in another.

        Within a few batches, those of similar length go together: padding costs as much as text does. They are
        no more than the data: of several rounds, sorted, a batch would be copies of one example.
        """
        drawn, size = random.Random(seed), min(size, len(self.train))  # noqa: S311
        together = size * min(_GROUPED, len(self.train) // size)
        order: list[Item] = []
        while True:
            while len(order) < together:
                order += drawn.sample(self.train, len(self.train))
            group = sorted(order[:together], key=lambda example: example.length)
            order = order[together:]
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
    size = at_once(size, examples[0].length, kind)
    ordered = sorted(examples, key=lambda example: example.length)
    return Batches([ordered[start : start + size] for start in range(0, len(ordered), size)], collate)


def at_once(size: int, length: int, kind: TaskKind) -> int:
    """Examples of this many tokens that `batched` puts into a batch of ``size`` at most."""
    return min(size, max(1, _LANGUAGE_MODEL_TOKENS // length)) if FORMS[kind].labels == "none" else size


def classes(name: str, task: TaskSpec) -> tuple[str, ...]:
    """The labels of the training split, sorted: whole numbers by value, anything else as text.

    Raises:
        CompileError: the file can't be used, or has fewer than two labels.
    """
    where = _where(name, "train", task.train)
    if task.takes_images:
        found = {str(label): label for _, label in images.listed(task.train, where, *task.columns)}
    else:
        _, column = task.columns
        rows, nested = read_rows(task.train, where, column), FORMS[task.kind].labels != "one"
        found = {str(label): label for row in labels_of(rows, column, where, nested) for label in row}
    if len(found) < 2:
        raise CompileError(f"{where}: expected at least two different labels, found {', '.join(found) or 'none'}")
    numbered = all(isinstance(label, int) for label in found.values())
    return tuple(sorted(found, key=lambda name: (int(found[name]), name) if numbered else (0, name)))


def fingerprint(path: Path, where: str, kind: TaskKind, columns: tuple[str, str]) -> str:
    """A hash of a task's data in a file, or of all the images that it names.

    Raises:
        CompileError: an image isn't there, or a file can't be read.
    """
    return images.fingerprint(path, where, *columns) if FORMS[kind].images else hashed(path, where)


def load(name: str, task: TaskSpec, reads: Any, known: Sequence[str], max_length: int) -> TaskData:
    """Read every split of a task, and tokenise texts; what looks like a mistake in them is warned of.

    Args:
        name: of the task.
        task: what the task file says of it.
        reads: the tokenizer, or for images an `ImageReader`.
        known: the task's classes in the order of their ids.
        max_length: of texts, in tokens.

    Raises:
        CompileError: as `TextReader.read` or `pictures.read`.
    """
    read, collated = _reading(task.kind, task.columns, reads, tuple(known), max_length)

    def split(split: str, path: Path, items: int | None = None) -> tuple[Item, ...]:
        return read(path, _where(name, split, path), items)

    validation = split("validation", task.validation, task.items) if task.validation else None
    held_out = split("eval", task.eval, task.items)
    data = TaskData(task.kind, tuple(known), split("train", task.train), held_out, validation, collated)
    _warn(name, task, data)
    return data


def _warn(name: str, task: TaskSpec, data: TaskData) -> None:
    found = [("train", task.train, doubts.of_labels(data.classes)), ("train", task.train, doubts.of_few(data.train))]
    found.append(("eval", task.eval, doubts.of_held_out(data.train, data.eval)))
    if task.validation is not None and data.validation is not None:
        found.append(("validation", task.validation, doubts.of_held_out(data.train, data.validation)))
    for split, path, lines in found:
        for line in lines:
            _log.warning("%s: %s", _where(name, split, path), line)


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
    """What reads a file as `TextReader.read` does, and what makes a batch of what was read."""
    if FORMS[kind].images:

        def pictures(path: Path, where: str, most: int | None) -> tuple[Item, ...]:
            return images.read(path, where, columns, known, reads, most)

        return pictures, partial(images.collate, reader=reads)
    reader = TextReader(kind, *columns, reads, known, max_length)
    return reader.read, partial(texts.collate, pad=reads.pad_token_id)


def _where(name: str, split: str, path: Path) -> str:
    return f"tasks.{name}.{split} ({path})"
