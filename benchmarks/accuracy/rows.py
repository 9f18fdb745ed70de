"""The rows of the accuracy benchmark, and the file that they are kept in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isclose
from pathlib import Path

from benchmarks import row_file


@dataclass(frozen=True)
class Row:
    """One task under one method.

    Attributes:
        domain: A, six text tasks on an encoder; B, four languages on a decoder; D, six tasks of it that write; or E,
            seven questions about pictures.
        resident_fraction: bytes of paged weights in memory, one task's, as a share of the dense ones in bfloat16.
        sparsity: fraction of the blocks dropped.
        method: see ``docs/accuracy.md``.
        recover: how accuracy was won back.
        seed: of data order and new heads.
        task: its name, or ``mean``; in domains D and E the mean of values as shares of the dense ones.
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
        return self.domain, self.resident_fraction, self.method, self.recover, self.seed, self.task


def read(path: Path) -> list[Row]:
    return row_file.read(path, Row)


def add(path: Path, rows: Iterable[Row]) -> None:
    row_file.add(path, rows, Row)


MEAN = "mean"
"""The row that stands for all tasks of one measurement."""


@dataclass(frozen=True)
class Point:
    """A method at one fraction of resident bytes.

    Attributes:
        domain: A, B, D or E.
        fraction: of the dense bytes of paged weights.
        method: its name in the rows.
        recover: how accuracy was won back.
        seeds: seed → task → row. Every seed has a `MEAN`.
    """

    domain: str
    fraction: float
    method: str
    recover: str
    seeds: Mapping[int, Mapping[str, Row]]

    @property
    def means(self) -> list[Row]:
        return [rows[MEAN] for rows in self.seeds.values()]

    @property
    def values(self) -> list[float]:
        return [row.value for row in self.means]

    @property
    def tasks(self) -> list[str]:
        first, *others = self.seeds.values()
        return [task for task in first if task != MEAN and all(task in rows for rows in others)]

    def value(self, task: str = MEAN) -> float:
        return average(rows[task].value for rows in self.seeds.values())

    def dense(self, task: str = MEAN) -> float:
        return average(rows[task].dense for rows in self.seeds.values())

    def loss(self, task: str = MEAN) -> float:
        """Points of a hundred that a task loses against the dense model; negative where it gains."""
        return 100 * (self.dense(task) - self.value(task))

    @property
    def overlap(self) -> float:
        return average(row.overlap for row in self.means)

    @property
    def bytes_per_switch(self) -> float:
        return average(row.bytes_per_switch for row in self.means)

    @property
    def compile_seconds(self) -> float:
        return average(row.compile_seconds for row in self.means)

    def only(self, seeds: Iterable[int]) -> Point:
        kept = {seed: self.seeds[seed] for seed in seeds}
        return Point(self.domain, self.fraction, self.method, self.recover, kept)


def average(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def gather(rows: Iterable[Row]) -> list[Point]:
    """The points of all rows, by domain, method, recovery and fraction.

    A seed without its `MEAN` was stopped in the middle and is left out.
    """
    found: dict[tuple[str, str, str, float], dict[int, dict[str, Row]]] = {}
    for row in rows:
        key = row.domain, row.method, row.recover, row.resident_fraction
        found.setdefault(key, {}).setdefault(row.seed, {})[row.task] = row
    points = []
    for (domain, method, recover, fraction), seeds in sorted(found.items()):
        whole = {seed: tasks for seed, tasks in sorted(seeds.items()) if MEAN in tasks}
        if whole:
            points.append(Point(domain, fraction, method, recover, whole))
    return points


def find(points: Iterable[Point], domain: str, fraction: float, method: str, recover: str) -> Point | None:
    """The point of one measurement; None if there is none."""
    for point in points:
        same = (point.domain, point.method, point.recover) == (domain, method, recover)
        if same and isclose(point.fraction, fraction):
            return point
    return None


def paired(one: Point, other: Point) -> tuple[Point, Point] | None:
    """Both with the seeds that they have in common; None if there are none."""
    common = [seed for seed in one.seeds if seed in other.seeds]
    return (one.only(common), other.only(common)) if common else None
