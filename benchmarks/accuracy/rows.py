"""The rows of the accuracy benchmark, and the file that they are kept in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import row_file


@dataclass(frozen=True)
class Row:
    """One task under one method.

    Attributes:
        domain: A, six text tasks on an encoder; B, four languages on a decoder; or D, six tasks of it that write.
        resident_fraction: bytes of paged weights in memory, one task's, as a share of the dense ones in bfloat16.
        sparsity: fraction of the blocks dropped.
        method: see ``docs/accuracy.md``.
        recover: how accuracy was won back.
        seed: of data order and new heads.
        task: its name, or ``mean``; in domain D the mean of values as shares of the dense ones.
        dense: metric of the dense model, trained as long.
        value: metric of the method.
        overlap: mean over ordered pairs of tasks.
        bytes_per_switch: mean over the tasks that it can come from.
        compile_seconds: from the dense model to the bundle.
        command: that prints the row.
        commit: of the sources.
    """

    domain: str
    resident_fraction: float
    sparsity: float
    method: str
    recover: str
    seed: int
    task: str
    dense: float
    value: float
    overlap: float
    bytes_per_switch: int
    compile_seconds: float
    command: str
    commit: str

    @property
    def key(self) -> tuple[str, float, str, str, int, str]:
        """What tells rows apart: one measurement each."""
        return self.domain, self.resident_fraction, self.method, self.recover, self.seed, self.task


def read(path: Path) -> list[Row]:
    """The rows of a file; none if there is no file."""
    return row_file.read(path, Row)


def add(path: Path, rows: Iterable[Row]) -> None:
    """Put rows into a file, in place of those that measured the same."""
    row_file.add(path, rows, Row)
