"""Files of rows: JSON, columns between separators, Parquet, and running text, each read row by row."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from weightpager.bundle.files.entry import hash_file
from weightpager.errors import CompileError, first_line, shortened, shown
from weightpager.machine.packages import not_installed

Row = dict[str, Any]

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "';'", "|": "'|'"}
"""Separators of columns, and their names in messages."""

_BLANKS = b" \t\r\n"
_BLANK = re.compile("[ \t\r\n]*")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def json_rows(path: Path) -> Iterator[Row]:
    """Objects, one a line or over several, or one array of them.

    Raises:
        ValueError: something else is there; says in which row, counted from 1, where each line is one.
    """
    with path.open("rb") as file:
        lines = (line for each in file if (line := each.removeprefix(_BYTE_ORDER_MARK).strip(_BLANKS)))
        first = next(lines, b"")
        if not first:
            return
        if _object(first) is None:  # an array, or objects that span lines
            yield from _spanning(path)
            return
        yield _checked(first, 1)
        for number, line in enumerate(lines, 2):
            yield _checked(line, number)


def separated_rows(path: Path, separator: str) -> Iterator[Row]:
    """Rows of columns, all of which are text: a guessed type would change what the file says, such as 01 or True.

    The first line names the columns. A value that a short row lacks is None.

    Raises:
        ValueError, csv.Error: the columns are separated otherwise, or a row has more values than columns.
    """
    with path.open(encoding="utf-8-sig", newline="") as file, _long_fields():
        rows = (row for row in csv.reader(file, delimiter=separator, strict=True) if row)
        names = next(rows, [])
        _check_names(names, separator)
        for number, row in enumerate(rows, 1):
            if len(row) > len(names):
                texts = f"texts with {_SEPARATORS[separator]}"
                raise ValueError(
                    f"row {number}: expected a value for each column, found more; put quotes around {texts}"
                )
            yield dict(zip_longest(names, row))


def parquet_rows(path: Path) -> Iterator[Row]:
    """Rows of a Parquet file; class numbers whose names it knows, as names.

    Raises:
        ValueError: the file is damaged, or has a time that Python doesn't hold, or a time zone unknown here.
        ConfigError: the package that reads it isn't installed.
    """
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError as error:
        raise not_installed("pyarrow", "compile", f"to read {path}, or write the data as .jsonl") from error
    try:
        with parquet.ParquetFile(path) as file:
            _check_different(file.schema_arrow.names, "columns of different names")
            names = _class_names(file.schema_arrow.metadata or {})
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield {column: _named(value, names.get(column)) for column, value in row.items()}
    except ArrowException as error:
        raise ValueError(first_line(error)) from error
    except (OverflowError, LookupError) as error:
        expected = "expected times of the years 1 to 9999 and of time zones that this machine knows"
        raise ValueError(f"{expected}, found others: {first_line(error)}; leave the column out") from error


def whole_text(path: Path) -> Iterator[Row]:
    """The file as one text, in column ``text``."""
    yield {"text": path.read_text(encoding="utf-8-sig")}


READERS: dict[str, tuple[str, Callable[[Path], Iterator[Row]]]] = {
    ".jsonl": ("json", json_rows),
    ".json": ("json", json_rows),
    ".csv": ("csv", partial(separated_rows, separator=",")),
    ".tsv": ("csv", partial(separated_rows, separator="\t")),
    ".parquet": ("parquet", parquet_rows),
}
"""The format's name and its reader, by a file's ending."""


class _RepeatedNameError(ValueError):
    """A name stands twice where the last one would be taken without a word."""


def _check_different(names: Sequence[str], what: str) -> None:
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise _RepeatedNameError(f"expected {what}, found {shortened(repr(twice))} twice")


def _fields(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        _check_different([name for name, _ in pairs], "fields of different names")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_fields)


def _object(text: bytes) -> Row | None:
    """The JSON object that a line is; None if it is none."""
    try:
        value = json.loads(text, object_pairs_hook=_fields)
        if isinstance(value, dict) and rb"\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no character
    except _RepeatedNameError:
        raise
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _checked(line: bytes, number: int) -> Row:
    try:
        row = _object(line)
    except _RepeatedNameError as error:
        raise ValueError(f"row {number}: {error}") from error
    if row is None:
        raise ValueError(f"row {number}: {_fault(line)}")
    return row


def _fault(line: bytes) -> str:
    """What is wrong with a line that is no JSON object of characters."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        place = f"{line[error.start]:#04x} at {error.start} of the line"
        return f"expected UTF-8, found the byte {place}; save the file as UTF-8"
    with suppress(ValueError, RecursionError):
        if isinstance(json.loads(text), dict):
            return f"expected Unicode text, found half of a surrogate pair in {shortened(text[:400])}"
    return f"expected a JSON object, found {shortened(text[:400])}"


def _spanning(path: Path) -> Iterator[Row]:
    """The objects of an array, or one behind the other."""
    text = path.read_text(encoding="utf-8-sig")
    start = _behind_blanks(text, 0)
    try:
        if text[start] == "[":
            rows = json.loads(text, object_pairs_hook=_fields)
        else:
            rows = []
            while start < len(text):
                found, end = _DECODER.raw_decode(text, start)
                rows.append(found)
                start = _behind_blanks(text, end)
        json.dumps(rows, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("expected JSON objects, found values inside too many others") from error
    if not all(isinstance(row, dict) for row in rows):
        other = next(number for number, row in enumerate(rows, 1) if not isinstance(row, dict))
        raise ValueError(f"row {other}: expected a JSON object, found {shortened(repr(rows[other - 1]))}")
    yield from rows


def _behind_blanks(text: str, start: int) -> int:
    blanks = _BLANK.match(text, start)
    return start if blanks is None else blanks.end()


def _check_names(names: list[str], separator: str) -> None:
    other = next((mark for mark in _SEPARATORS if len(names) == 1 and mark in names[0]), None)
    if other is not None:  # quoted, it would be a column that nobody has
        expected = f"expected columns separated by {_SEPARATORS[separator]}, found {_SEPARATORS[other]}"
        raise ValueError(f"{expected} in the first line; a .csv has commas, a .tsv has tabs")
    _check_different(names, "columns of different names")


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let the csv module take texts of more than its usual 128 KiB."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """The class names of columns with class numbers, as the datasets library writes them."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        classes = {column: _names_in(feature) for column, feature in features.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # anybody may write there
        return {}
    return {column: names for column, names in classes.items() if names}


def _names_in(feature: Any) -> list[str]:
    if isinstance(feature, list):
        feature = {"feature": feature[0]} if feature else {}
    if feature.get("_type") == "ClassLabel":
        return [str(name) for name in feature["names"]]
    return _names_in(feature["feature"]) if "feature" in feature else []


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(each, names) for each in value]
    if not isinstance(value, int) or not 0 <= value < len(names):
        raise ValueError(f"expected class numbers below {len(names)}, found {shortened(repr(value))}")
    return names[value]


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
    """BLAKE3 of a file; errors speak of ``where``. Raises `CompileError` if it isn't there, or can't be read."""
    try:
        return hash_file(path).blake3
    except OSError as error:
        raise CompileError(f"{where}: cannot be read: {error.strerror or error}") from error


def texts_of(rows: list[Row], column: str, where: str) -> list[str]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row[column], str):
            raise CompileError(f"{where}: row {number}: expected {column!r} to be text, found {shown(row[column])}")
    return [row[column] for row in rows]


def words_of(value: Any, where: str, number: int) -> list[str]:
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
