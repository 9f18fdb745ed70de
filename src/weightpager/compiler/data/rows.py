"""Files of task data -> rows, and what a row's columns must hold."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pandas

from weightpager.bundle.files.entry import hash_file
from weightpager.compiler.task_file.messages import shown
from weightpager.errors import CompileError, first_line, shortened

Row = dict[str, Any]

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
    # Without this the words "None", "NA" and "null" would be read as missing.
    ".csv": ("csv", {"keep_default_na": False, "sep": ","}),
    ".tsv": ("csv", {"keep_default_na": False, "sep": "\t"}),
    ".parquet": ("parquet", {}),
}
_SEPARATORS = {",": "commas", "\t": "tabs", ";": "';'", "|": "'|'"}
"""Separators of columns, and their names in messages."""

_WHOLE_TEXT: tuple[str, dict[str, Any]] = ("text", {"sample_by": "document"})

_MOST_LABELS = 20
"""Labels that a message names at most: numbers taken for labels may be thousands."""

_MOST_OF_A_LIST = 400
"""Characters of names that a message shows at most."""


def read_rows(path: Path, where: str, *columns: str, whole_text: bool = False, most: int | None = None) -> list[Row]:
    """The rows of a file, each with the columns; the first ``most`` only, and no more than these are looked at."""
    if path.suffix not in FORMATS and not whole_text:
        raise CompileError(f"{where}: expected a file of {', '.join(FORMATS)}, found {path.suffix or path.name!r}")
    kind, options = FORMATS.get(path.suffix, _WHOLE_TEXT)
    rows = _read(path, where, kind, options, most)
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


def _read(path: Path, where: str, kind: str, options: dict[str, Any], most: int | None) -> list[Row]:
    if path.stat().st_size == 0:
        return []
    # A link, since datasets takes a name for a pattern, a chain of archives, or its ending for a kind of archive. And
    # streaming leaves no converted copy of the file in a cache; the lock that remains goes to a folder of ours. And
    # load_dataset would tell a server about each file that it reads, and wait for it where there is no network.
    with tempfile.TemporaryDirectory() as folder, _quiet():
        try:
            link = Path(folder, f"data.{kind}")
            link.symlink_to(path.absolute())
            reader = getattr(datasets.Dataset, f"from_{kind}")
            if kind == "csv":  # columns are text: what a type is guessed of, 01 or True, isn't what the file says
                options = {**options, "features": _text_columns(path, options)}
            stream = reader(str(link), cache_dir=folder, streaming=True, **options)
            return [_decoded(row, stream.features or {}) for row in islice(stream, most)]
        except StopIteration:
            return []
        except (ValueError, TypeError, NotImplementedError, OSError, datasets.exceptions.DatasetsError) as error:
            raise CompileError(f"{where}: cannot be read as {kind}: {_fault(path, kind, error)}") from error


def _fault(path: Path, kind: str, error: Exception) -> str:
    """What is wrong with a file; of a JSON file with one object a line, in which row."""
    if kind != "json":
        return first_line(error)
    with suppress(OSError), path.open("rb") as file:
        rows = filter(None, map(bytes.strip, file))
        for number, row in enumerate(rows, 1):
            if not _is_object(row):
                if number == 1:  # the file may well have objects that span lines, or one array of them
                    break
                return f"row {number}: expected a JSON object, found {row[:80].decode('utf-8', 'backslashreplace')}"
    # Rows are counted there from 0, and from the part of the file on that was being read.
    return re.sub(r" in row \d+$", "", first_line(error))


def _is_object(row: bytes) -> bool:
    try:
        return isinstance(json.loads(row), dict)
    except (ValueError, RecursionError):
        return False


def _text_columns(path: Path, options: dict[str, Any]) -> datasets.Features:
    first = pandas.read_csv(path, nrows=1, dtype=str, **options)
    own, names = options["sep"], list(first.columns)
    other = next((mark for mark in _SEPARATORS if len(names) == 1 and mark in names[0]), None)
    if other is not None:  # quoted, it would be a column that nobody has
        expected = f"expected columns separated by {_SEPARATORS[own]}, found {_SEPARATORS[other]} in the first line"
        raise ValueError(f"{expected}; a .csv has commas, a .tsv has tabs")
    if len(first) and not isinstance(first.index, pandas.RangeIndex):  # pandas takes what is too much for names of rows
        texts = f"texts with {_SEPARATORS[own]}"
        raise ValueError(f"row 1: expected a value for each column, found more; put quotes around {texts}")
    return datasets.Features({name: datasets.Value("string") for name in names})


def _decoded(row: Row, features: Any) -> Row:
    """Class numbers of a Parquet file that knows their names, as names."""
    return {column: _class_names(value, features.get(column)) for column, value in row.items()}


def _class_names(value: Any, feature: Any) -> Any:
    if isinstance(feature, datasets.ClassLabel) and value is not None:
        return feature.int2str(value)
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.ClassLabel) and isinstance(value, list):
        return [inner.int2str(item) for item in value]
    return value


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


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, no log lines about what is raised as an error anyway."""
    level, bars = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
