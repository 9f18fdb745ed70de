"""What reads a task's data, and the held-out data that a bundle names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from weightpager.answers.query import pad_id
from weightpager.answers.token_reader import check_ids
from weightpager.bundle.format.manifest import FORMS, TaskEntry, TaskKind
from weightpager.errors import CompileError
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.task_data import completions, images, row_pictures, texts
from weightpager.task_data.batches import Batches, Labelled, batched
from weightpager.task_data.images import Picture
from weightpager.task_data.row_files import hashed
from weightpager.task_data.texts import Example, TextReader

Item = Example | Picture

ReadItems = Callable[[Path, str, int | None], tuple[Item, ...]]
"""Reads a file, or a folder of images, as `TextReader.read` does."""


def read_held_out(
    entry: TaskEntry, path: Path, reader: Tokenizer | ImageReader, vocab_size: int, size: int
) -> Batches[Labelled]:
    """The held-out data of a bundle's task, as it was when the task was compiled; the file may have moved to ``path``.

    Args:
        entry: the task's.
        path: of the data.
        reader: of the bundle's inputs.
        vocab_size: the model's token ids are below it.
        size: of a batch.

    Raises:
        CompileError: the data can't be used, or the entry names none.
        BundleFormatError: the tokenizer knows words of the data that the model doesn't.
    """
    if entry.eval is None:
        raise CompileError(f"{entry.name}: the bundle names no held-out data for this task")
    columns = (entry.eval.text, entry.eval.label)
    items = items_reader(entry.kind, columns, reader, entry.classes, entry.max_length or 0, bos=entry.add_bos_token)
    where = split_label(entry.name, "eval", path)
    examples = items(path, where, entry.eval.items)
    for example in examples:
        if isinstance(example, Example):
            check_ids(example.tokens, vocab_size)
    if entry.generation is not None:
        if (form := completions.form(examples)) != entry.generation.prompts:
            expected = f"expected prompts of the form {entry.generation.prompts}, as the task was compiled with"
            raise CompileError(f"{where}: {expected}, found {form}")
        tokenizer = cast(Tokenizer, reader)
        return completions.prompts(examples, size, pad_id(vocab_size, tokenizer), tokenizer.pictures)
    return batched(examples, size, entry.kind, _collated(reader, vocab_size))


def items_reader(
    kind: TaskKind, columns: tuple[str, str], reads: Any, classes: Sequence[str], max_length: int, *, bos: bool = True
) -> ReadItems:
    """What reads the files of a kind of tasks.

    Args:
        kind: of the task.
        columns: of inputs and labels.
        reads: `texts.TextTokens`, of prompts and completions a `Tokenizer`, or for images an `ImageReader`.
        classes: in the order of their ids.
        max_length: of texts, in tokens.
        bos: whether texts that a task writes begin with what the tokenizer puts in front of one; False for tasks that
            didn't learn so.
    """
    if FORMS[kind].images:
        return lambda path, where, most: images.read(path, where, columns, classes, reads, most)
    if FORMS[kind].completes:
        return completions.CompletionReader(*columns, reads, max_length, bos).read
    return TextReader(kind, *columns, reads, tuple(classes), max_length, bos).read


def checked_labels(
    kind: TaskKind, columns: tuple[str, str], path: Path, where: str, most: int | None
) -> list[list[str | int]]:
    """The labels of each row, once all is checked of the data that `items_reader` would refuse whatever the model.

    Of images that is what comes before their pixels.

    Raises:
        CompileError: says what was expected.
        ConfigError: the data are images, and Pillow isn't installed.
    """
    rows = FORMS[kind].rows
    if rows == "image":
        return images.checked_labels(path, where, *columns, most)
    if rows == "completion":
        completions.asked_and_answered(path, where, *columns, most)
        return []
    return texts.checked_labels(rows, path, where, *columns, most)


def fingerprint(path: Path, where: str, kind: TaskKind, columns: tuple[str, str], *, among_words: bool = True) -> str:
    """A hash of a task's data in a file, and of all the images that it names.

    Args:
        path: of the data.
        where: what errors speak of.
        kind: of the task.
        columns: of inputs and labels.
        among_words: whether the model reads pictures among its words, or may; another one looks at none that rows name.

    Raises:
        CompileError: an image isn't there, or a file can't be read.
    """
    if FORMS[kind].images:
        return images.fingerprint(path, where, *columns)
    looks = among_words and FORMS[kind].picture_model
    return row_pictures.fingerprint(path, where) if looks else hashed(path, where)


def split_label(name: str, split: str, path: Path) -> str:
    """A task's data, as errors speak of it."""
    return f"tasks.{name}.{split} ({path})"


def _collated(reader: Tokenizer | ImageReader, vocab_size: int) -> Callable[[Sequence[Any]], Labelled]:
    if isinstance(reader, ImageReader):
        return partial(images.collate, reader=reader)
    return partial(texts.collate, pad=pad_id(vocab_size, reader))
