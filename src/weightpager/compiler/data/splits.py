"""Task data: the splits of a task, of texts or of images, and their batches."""

from __future__ import annotations

import logging
import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from weightpager.bundle.format.manifest import FORMS, Generation, TaskKind
from weightpager.compiler.data import doubts
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.tokens import TransformersTokens, reader_of
from weightpager.compiler.task_file.sections import TaskSpec
from weightpager.errors import CompileError
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data import completions, images, texts
from weightpager.task_data.batches import EVAL_BATCH, Batches, batched
from weightpager.task_data.completions import Asked
from weightpager.task_data.held_out import Item, checked_labels, items_reader, split_label
from weightpager.task_data.rows import label_ids, labels_of, read_rows

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
        kind, classes: the task's kind and its classes.
        train, eval, validation: the examples of its splits.
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
        return completions.prompts(self.eval, EVAL_BATCH, self.asked.tokenizer.pad_id or 0).mapped(Batch.of)

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
    where = split_label(name, "train", task.train)
    if task.takes_images:
        return _sorted([[label] for _, label in images.listed(task.train, where, *task.columns)], where)
    _, column = task.columns
    rows, nested = read_rows(task.train, where, column), FORMS[task.kind].labels != "one"
    return _sorted(labels_of(rows, column, where, nested), where)


def _sorted(rows: Sequence[Sequence[str | int]], where: str) -> tuple[str, ...]:
    """The different labels of all rows, in the order of `classes`."""
    labels = {str(label): label for row in rows for label in row}
    if len(labels) < 2:
        raise CompileError(f"{where}: expected at least two different labels, found {', '.join(labels) or 'none'}")
    numbered = all(isinstance(label, int) for label in labels.values())
    return tuple(sorted(labels, key=lambda name: (int(labels[name]), name) if numbered else (0, name)))


def check(name: str, task: TaskSpec, known: Sequence[str] | None) -> None:
    """Refuse data that can't be used, as far as that shows without the model: its files, columns and labels.

    Args:
        name: of the task.
        task: what the task file says of it.
        known: the classes of the head that the task brings; None where the training split names them.

    Raises:
        CompileError: says what was expected.
        ConfigError: the data are images, and Pillow isn't installed.
    """
    splits = {"train": task.train, "eval": task.eval, "validation": task.validation}
    for split, path in splits.items():
        if path is None:
            continue
        where, items = split_label(name, split, path), None if split == "train" else task.items
        labels = checked_labels(task.kind, task.columns, path, where, items)
        if task.labelled:
            known = _sorted(labels, where) if known is None else known  # the training split is the first
            label_ids(labels, known, where)


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
    reader: Any = reads
    if not task.takes_images:
        reader = reader_of(reads) if task.completes else TransformersTokens(reads)
    read = items_reader(task.kind, task.columns, reader, known, max_length)
    collated: Collate = (
        partial(_collate_pictures, reader=reads)
        if task.takes_images
        else partial(collate_texts, pad=reads.pad_token_id)
    )

    def split(split: str, path: Path, items: int | None = None) -> tuple[Item, ...]:
        return read(path, split_label(name, split, path), items)

    validation = split("validation", task.validation, task.items) if task.validation else None
    held_out = split("eval", task.eval, task.items)
    train = split("train", task.train)
    splits = {"train": train, "eval": held_out, "validation": validation or ()}
    asked = _asked(name, task, reader, splits) if task.completes else None
    data = TaskData(task.kind, tuple(known), train, held_out, validation, collated, asked)
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
    warnings = [("train", task.train, doubts.of_labels(data.classes)), ("train", task.train, doubts.of_few(data.train))]
    warnings.append(("train", task.train, doubts.of_length(data.train, max_length, key)))
    warnings.append(("train", task.train, doubts.of_joints(data.train)))
    warnings.append(("train", task.train, doubts.of_template(data.asked)))
    warnings.append(("eval", task.eval, doubts.of_held_out(data.train, data.eval)))
    warnings.append(("eval", task.eval, doubts.of_held_out(data.validation or (), data.eval, "validation")))
    if task.validation is not None and data.validation is not None:
        warnings.append(("validation", task.validation, doubts.of_held_out(data.train, data.validation)))
    for split, path, lines in warnings:
        for line in lines:
            _log.warning("%s: %s", split_label(name, split, path), line)


def collate_texts(examples: Sequence[Any], pad: int) -> Batch:
    """One batch, padded on the right to its longest example."""
    return Batch.of(texts.collate(examples, pad))


def _collate_pictures(pictures: Sequence[Any], reader: Any) -> Batch:
    return Batch.of(images.collate(pictures, reader))
