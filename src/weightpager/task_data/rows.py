"""Files of task data -> rows, and what a row's columns must hold."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from weightpager.bundle.files.entry import hash_file
from weightpager.errors import CompileError, first_line, shortened, shown
from weightpager.task_data.row_files import READERS, Row, whole_text

_MOST_LABELS = 20
"""Labels that a message names at most: numbers taken for labels may be thousands."""

_MOST_OF_A_LIST = 400
"""Characters of names that a message shows at most."""


def read_rows(path: Path, where: str, *columns: str, running_text: bool = False, most: int | None = None) -> list[Row]:
    """The rows of a file, each with the columns; the first ``most`` only, and no more than these are looked at.

    Args:
        path: of the file.
        where: what errors speak of.
        columns: that each row must have.
        running_text: whether a file of another ending is one text.
        most: rows to read; None reads all.

    Raises:
        CompileError: the file can't be read, is empty, or a row lacks a column.
    """
    if path.suffix not in READERS and not running_text:
        raise CompileError(f"{where}: expected a file of {', '.join(READERS)}, found {path.suffix or path.name!r}")
    rows = _read(path, where, most)
    if not rows:
        raise CompileError(f"{where}: expected at least one row, found an empty file")
    for column in columns:
        if not any(column in row for row in rows):
            raise CompileError(
                f"{where}: expected a column {column!r}, found {shortened(', '.join(sorted(rows[0])), _MOST_OF_A_LIST)}"
            )
        for number, row in enumerate(rows, 1):
            if row.get(column) is None:
                raise CompileError(f"{where}: row {number}: expected a value for {column!r}, found none")
    return rows


def _read(path: Path, where: str, most: int | None) -> list[Row]:
    kind, reader = READERS.get(path.suffix, ("text", whole_text))
    try:
        return list(islice(reader(path), most)) if path.stat().st_size else []
    except (ValueError, OSError, csv.Error) as error:  # pyarrow's errors are among them
        raise CompileError(f"{where}: cannot be read as {kind}: {first_line(error)}") from error


def hashed(path: Path, where: str) -> str:
    """BLAKE3 of a file; errors speak of ``where``.

    Raises:
        CompileError: it isn't there, or can't be read.
    """
    try:
        return hash_file(path).blake3
    except OSError as error:
        raise CompileError(f"{where}: cannot be read: {error.strerror or error}") from error


def texts_of(rows: list[Row], column: str, where: str) -> list[str]:
    """The texts of a column."""
    for number, row in enumerate(rows, 1):
        if not isinstance(row[column], str):
            raise CompileError(f"{where}: row {number}: expected {column!r} to be text, found {shown(row[column])}")
    return [row[column] for row in rows]


def words_of(value: Any, where: str, number: int) -> list[str]:
    """The words of row ``number``."""
    if not isinstance(value, list) or not value or not all(isinstance(word, str) and word for word in value):
        raise CompileError(f"{where}: row {number}: expected a list of words, found {shown(value)}")
    return value


def labels_of(rows: list[Row], column: str, where: str, nested: bool) -> list[list[str | int]]:
    """The labels of every row, as a list each."""
    labels: list[list[str | int]] = []
    for number, row in enumerate(rows, 1):
        value = row[column] if nested else [row[column]]
        if not isinstance(value, list) or not all(isinstance(label, (str, int)) for label in value):
            expected = "a list of labels" if nested else "text or a whole number"
            raise CompileError(
                f"{where}: row {number}: expected {column!r} to be {expected}, found {shown(row[column])}"
            )
        if "" in value:
            raise CompileError(f"{where}: row {number}: expected a value for {column!r}, found none")
        labels.append(value)
    return labels


def label_ids(labels: list[list[str | int]], known: Sequence[str], where: str) -> list[list[int]]:
    """Labels as positions in ``known``."""
    ids = {label: number for number, label in enumerate(known)}
    # A head that was trained without names calls its classes LABEL_0, LABEL_1, …
    ids |= {str(number): number for number, label in enumerate(known) if label == f"LABEL_{number}"}
    for number, row in enumerate(labels, 1):
        for label in row:
            if str(label) not in ids:
                raise CompileError(
                    f"{where}: row {number}: expected one of the labels {_listed(known)}, found {shown(str(label))}"
                )
    return [[ids[str(label)] for label in row] for row in labels]


def _listed(known: Sequence[str]) -> str:
    """The first labels, and how many there are if that isn't all."""
    more = f", … ({len(known)} in all)" if len(known) > _MOST_LABELS else ""
    return shortened(", ".join(known[:_MOST_LABELS]), _MOST_OF_A_LIST) + more
