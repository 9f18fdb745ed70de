"""Files of what benchmarks measure: JSON that appears whole or not at all, mostly a list of rows, each a dataclass."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from weightpager.bundle.files.new_file import new_file

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    class KeyedRow(DataclassInstance, Protocol):
        """A row that says what it has measured."""

        @property
        def key(self) -> Hashable:
            """What tells rows apart: one measurement each."""


Row = TypeVar("Row", bound="DataclassInstance")
Keyed = TypeVar("Keyed", bound="KeyedRow")


def read(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return [kind(**row) for row in json.loads(file.read_bytes())] if file.is_file() else []


def write(file: Path, rows: Iterable[DataclassInstance]) -> None:
    """Put rows in a file's place."""
    write_json(file, [asdict(row) for row in rows])


def add(file: Path, rows: Iterable[Keyed], kind: type[Keyed]) -> None:
    """Put rows into a file, in place of those that measured the same."""
    write(file, {row.key: row for row in [*read(file, kind), *rows]}.values())


def write_json(file: Path, content: object) -> None:
    """Put content in a file's place."""
    write_text(file, json.dumps(content, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Put a text in a file's place."""
    with new_file(file) as new:
        new.write(text.encode())
