"""Which task follows which: traces become a transition matrix, and that says how often each switch happens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from weightpager.errors import ConfigError

Floats = npt.NDArray[np.float64]

_DOUBLINGS = 64

_MOST_SMOOTHING = 1e300
"""Far beyond any use. A row of such counts has a finite sum."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """A Markov chain of switches; a task never follows itself, unless it is the only one.

    Attributes:
        tasks: their names, in the order of rows and columns.
        matrix: [T, T], ``P[t, u]`` = P(next = u given current = t); rows sum to 1.
    """

    tasks: tuple[str, ...]
    matrix: Floats

    def __post_init__(self) -> None:
        _check_names(self.tasks)
        matrix = np.array(self.matrix, np.float64)
        size = len(self.tasks)
        if matrix.shape != (size, size):
            raise ConfigError(f"transitions: expected {size} rows and columns, got shape {matrix.shape}")
        if not (matrix >= 0).all() or not np.allclose(matrix.sum(axis=1), 1.0):
            raise ConfigError(f"transitions: expected probabilities, every row summing to 1, got {matrix.tolist()}")
        if size > 1 and matrix.diagonal().any():
            raise ConfigError(f"transitions: expected no task to follow itself, got diagonal {matrix.diagonal()}")
        matrix.flags.writeable = False
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def uniform(cls, tasks: Sequence[str]) -> Transitions:
        """Every other task is as likely as the next: what to assume without a trace."""
        return cls(tuple(tasks), _normalised(_others(len(tasks))))

    @classmethod
    def from_trace(cls, tasks: Sequence[str], visits: Sequence[str | None], smoothing: float = 1.0) -> Transitions:
        """Count which task followed which.

        Args:
            tasks: the rows and columns.
            visits: names in the order of time; repeats of a name are one visit. None is a gap: no switch leads over it.
            smoothing: added to the count of every switch, so that what a short trace lacks is rare, not impossible.
                With 0 a task that was never left is followed by all others alike.

        Raises:
            ConfigError: a visit to an unknown task, or a smoothing that is negative, or so large that sums overflow.
        """
        if not 0 <= smoothing <= _MOST_SMOOTHING:
            raise ConfigError(f"smoothing: expected a number from 0 to {_MOST_SMOOTHING:g}, got {smoothing}")
        _check_names(tuple(tasks))
        row = {task: number for number, task in enumerate(tasks)}
        if unknown := next((task for task in visits if task is not None and task not in row), None):
            raise ConfigError(f"trace: expected one of {', '.join(tasks)}, got {unknown!r}")
        counts = smoothing * _others(len(tasks))
        for task, following in pairwise(visits):
            if task is not None and following is not None and task != following:
                counts[row[task], row[following]] += 1
        return cls(tuple(tasks), _normalised(counts))

    def extended(self, tasks: Sequence[str]) -> Transitions:
        """With one or more new tasks, each as likely to come next as any other; the old ones keep their proportions."""
        old, size = len(self.tasks), len(self.tasks) + len(tasks)
        matrix = _others(size) / max(1, size - 1)
        matrix[:old, :old] = self.matrix * (old - 1) / max(1, size - 1)
        return Transitions((*self.tasks, *tasks), matrix)

    def only(self, tasks: Sequence[str]) -> Transitions:
        """Without the other tasks, as if they had never been asked for."""
        rows = [self.tasks.index(task) for task in tasks]
        return Transitions(tuple(tasks), _normalised(self.matrix[np.ix_(rows, rows)] * _others(len(rows))))

    def stationary(self) -> Floats:
        """π [T] with π P = π: the share of all visits that each task gets.

        Walks the lazy chain (I + P) / 2, which has the same π and no period, from every task by doubling its
        steps. Where the chain falls apart, each closed part counts by how many starts end in it.
        """
        walk = (np.eye(len(self.tasks)) + self.matrix) / 2
        for _ in range(_DOUBLINGS):
            walk = walk @ walk
            walk /= walk.sum(axis=1, keepdims=True)
        return np.asarray(walk.mean(axis=0))

    def switch_rate(self) -> Floats:
        """``π_t P_tu`` [T, T]: the share of all switches that lead from t to u."""
        return self.stationary()[:, None] * self.matrix


def _check_names(tasks: tuple[str, ...]) -> None:
    if not tasks or len(set(tasks)) != len(tasks):
        raise ConfigError(f"tasks: expected at least one name, all different, got {list(tasks)}")


def _others(size: int) -> Floats:
    """[T, T], 1 for every pair of a task and one that may follow it."""
    return np.ones((1, 1)) if size == 1 else 1.0 - np.eye(size)


def _normalised(counts: Floats) -> Floats:
    """Rows summing to 1; a row without counts becomes uniform."""
    totals = counts.sum(axis=1, keepdims=True)
    rows = np.where(totals > 0, counts, _others(len(counts)))
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))
