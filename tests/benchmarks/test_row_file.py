"""A file of rows: whole or not at all, one row for each measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import row_file


@dataclass(frozen=True)
class Measured:
    name: str
    value: object

    @property
    def key(self) -> str:
        return self.name


def test_rows_replace_those_that_measured_the_same(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert row_file.read(file, Measured) == []
    row_file.add(file, [Measured("a", 1), Measured("b", 2)], Measured)
    row_file.add(file, [Measured("a", 3), Measured("c", 4)], Measured)
    assert row_file.read(file, Measured) == [Measured("a", 3), Measured("b", 2), Measured("c", 4)]


def test_rows_that_cannot_be_written_leave_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    row_file.write(file, [Measured("a", 1)])
    with pytest.raises(TypeError):
        row_file.write(file, [Measured("a", object())])
    assert row_file.read(file, Measured) == [Measured("a", 1)]
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
