"""Rows of the accuracy benchmark gathered by what was measured: one point holds all its seeds and tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isclose

from benchmarks.accuracy.rows import Row

MEAN = "mean"
"""The row that stands for all tasks of one measurement."""


@dataclass(frozen=True)
class Point:
    """A method at one fraction of resident bytes.

    Attributes:
        domain: A, B or D.
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
        """The row of all tasks, of each seed."""
        return [rows[MEAN] for rows in self.seeds.values()]

    @property
    def values(self) -> list[float]:
        """The mean metric of each seed."""
        return [row.value for row in self.means]

    @property
    def tasks(self) -> list[str]:
        """The tasks that every seed has."""
        first, *others = self.seeds.values()
        return [task for task in first if task != MEAN and all(task in rows for rows in others)]

    def value(self, task: str = MEAN) -> float:
        """A task's metric, mean over the seeds."""
        return average(rows[task].value for rows in self.seeds.values())

    def dense(self, task: str = MEAN) -> float:
        """The dense model's metric, mean over the seeds."""
        return average(rows[task].dense for rows in self.seeds.values())

    def loss(self, task: str = MEAN) -> float:
        """Points of a hundred that a task loses against the dense model; negative where it gains."""
        return 100 * (self.dense(task) - self.value(task))

    @property
    def overlap(self) -> float:
        """Mean over the seeds."""
        return average(row.overlap for row in self.means)

    @property
    def bytes_per_switch(self) -> float:
        """Mean over the seeds."""
        return average(row.bytes_per_switch for row in self.means)

    @property
    def compile_seconds(self) -> float:
        """Mean over the seeds."""
        return average(row.compile_seconds for row in self.means)

    def only(self, seeds: Iterable[int]) -> Point:
        """The same with these seeds only."""
        kept = {seed: self.seeds[seed] for seed in seeds}
        return Point(self.domain, self.fraction, self.method, self.recover, kept)


def average(values: Iterable[float]) -> float:
    """The arithmetic mean of at least one value."""
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
