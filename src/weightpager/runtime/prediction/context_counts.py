"""How often each task followed a context: the counts of one order and one memory of a Markov predictor."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Context = tuple[int, ...]

_NEGLIGIBLE = 0.02


class ContextCounts:
    """Counts of what followed each of a bounded number of contexts.

    Blends with what a shorter context says as Witten and Bell do (method C of "The zero-frequency problem", 1991, in
    its interpolated form of Chen and Goodman, 1999): with ``c(x)`` of ``C`` counts and ``d`` different successors,
    ``P(x) = (c(x) + d · lower(x)) / (C + d)``.

    Args:
        memory: how many visits to a context its past is worth; each visit multiplies older counts by
            ``1 - 1 / memory``.
        capacity: contexts kept; the one that was met least recently goes first.
    """

    def __init__(self, memory: float, capacity: int) -> None:
        self._keep = 1.0 - 1.0 / memory
        self._capacity = capacity
        self._counts: OrderedDict[Context, dict[int, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, context: Context, task: int) -> None:
        """The task followed the context."""
        old = self._counts.pop(context, {})
        counts = {other: count * self._keep for other, count in old.items() if count > _NEGLIGIBLE}
        counts[task] = counts.get(task, 0.0) + 1.0
        self._counts[context] = counts
        if len(self._counts) > self._capacity:
            self._counts.popitem(last=False)

    def chance(self, context: Context, task: int, lower: float, current: int | None = None) -> float:
        """Probability that the task follows, given what the shorter context says of it.

        Args:
            context: what came before.
            task: what may follow; not the current one.
            lower: the shorter context's probability of it.
            current: a task that can't follow.
        """
        counts = self._counts.get(context)
        if counts is None:
            return lower
        total, distinct = _sums(counts, current)
        return (counts.get(task, 0.0) + distinct * lower) / (total + distinct) if distinct else lower

    def chances(self, context: Context, lower: Floats, current: int | None = None) -> Floats:
        """``chance`` for all tasks, [tasks]; ``lower`` is 0 for the current one."""
        counts = self._counts.get(context)
        if counts is None:
            return lower
        total, distinct = _sums(counts, current)
        if not distinct:
            return lower
        blended = distinct * lower
        for task, count in counts.items():
            if task != current:
                blended[task] += count
        return np.asarray(blended / (total + distinct))


def _sums(counts: dict[int, float], current: int | None) -> tuple[float, int]:
    """All counts, and the number of successors, without those of the current task."""
    if current not in counts:
        return sum(counts.values()), len(counts)
    return sum(counts.values()) - counts[current], len(counts) - 1
