"""The next task by the latest few: Markov models of several orders and memories, mixed by how well they do."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.predictor import Forecast, LearningPredictor

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


_Chances = TypeVar("_Chances", float, Floats)
"""The chance of one task, or those of all [tasks]."""

ORDER = 3
MEMORIES = (200.0, 10.0)
SHARE = 0.01


class MarkovPredictor:
    """A mixture of experts: what is assumed at first, and every order from 0 to ``order`` with every memory.

    An order blends what followed its context with the next lower order (see ``ContextCounts``). An expert's weight is
    multiplied by the probability that it gave to what came, and then a small share is dealt out to all alike: the
    fixed share of Herbster and Warmuth, "Tracking the best expert" (1998). The loss stays close to that of the best
    sequence of experts; short memories take over when habits change, long ones when they last.

    Args:
        tasks: how many there are.
        prior: [tasks, tasks], the bundle's transition matrix, rows summing to 1: what to assume at first. One in which
            every other task is as likely as the next says nothing, and counts as none.
        order: tasks, the current one included, that the longest context has.
        memories: see ``ContextCounts``.
        capacity: contexts kept of each order and memory.
    """

    def __init__(
        self,
        tasks: int,
        prior: npt.ArrayLike | None = None,
        order: int = ORDER,
        memories: tuple[float, ...] = MEMORIES,
        capacity: int = 1024,
    ) -> None:
        if tasks < 1:
            raise ValueError(f"expected at least one task, got {tasks}")
        if order < 0 or not memories or min(memories) <= 1:
            raise ValueError(f"expected an order from 0 up and memories over 1, got {order} and {memories}")
        self.tasks = tasks
        self._prior = None if prior is None else _told(np.array(prior, np.float64), tasks)
        self._dwelt = np.zeros((2, tasks))  # seconds of each task's visits that have ended, and how many
        self._past: tuple[int, ...] = ()  # latest first; the current task, unless there is a gap
        self._reach = max(1, order)  # visits of the past that matter
        self._since = 0.0
        self._next: Floats | None = None
        self._counts = [[ContextCounts(memory, capacity) for _ in range(order + 1)] for memory in memories]
        self._weights = np.full(1 + len(memories) * (order + 1), 1.0)
        self._weights /= self._weights.sum()

    def observe(self, task: int, seconds: float) -> None:
        if not (0 <= task < self.tasks and math.isfinite(seconds)):
            raise ValueError(f"expected a task from 0 to {self.tasks - 1} at a finite time, got {task} at {seconds}")
        if self._past and self._past[0] == task:
            return
        if self._past:
            self._dwelt[:, self._past[0]] += max(0.0, seconds - self._since), 1.0
            self._learn(self._past, task)
        self._past = (task, *self._past[: self._reach - 1])
        self._since, self._next = seconds, None

    def interrupt(self) -> None:
        self._past, self._next = (), None

    def forecast(self, seconds: float) -> Forecast:
        """Implements `TransitionPredictor`. What is left of a visit is the mean length less what has passed."""
        if self._next is None:
            self._next = self._chances(self._past)
        if not self._past or not self._next.any():
            return Forecast(self._next, None)
        length, visits = self._dwelt[:, self._past[0]]
        if not visits:
            length, visits = self._dwelt.sum(1)
        left = max(0.0, float(length / visits) - max(0.0, seconds - self._since)) if visits else None
        return Forecast(self._next / self._next.sum(), left)

    def after(self, task: int) -> Floats:
        return self._chances((task,))

    def _base(self, current: int | None) -> Floats:
        """What to assume of the next task, [tasks]: the prior, or all others alike."""
        if self._prior is not None:
            return np.asarray(self._prior.mean(axis=0) if current is None else self._prior[current])
        others = np.ones(self.tasks)
        if current is not None:
            others[current] = 0.0
        return np.asarray(others / max(1.0, others.sum()))

    def _learn(self, past: tuple[int, ...], task: int) -> None:
        """The task followed the past, latest first."""
        current = past[0]
        base = float(self._base(current)[task])
        experts = self._experts(past, base, lambda counts, context, lower: counts.chance(context, task, lower, current))
        weights = self._weights * np.array(list(experts))
        # All may have given it nothing: a prior can rule out what comes all the same.
        if (total := weights.sum()) > 0:
            self._weights = (1 - SHARE) * weights / total + SHARE / len(weights)
        for orders in self._counts:
            for order, counts in enumerate(orders):
                if order <= len(past):
                    counts.add(past[:order], task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        """Probability of each task, [tasks], by what has come before; 0 for the current one."""
        current = past[0] if past else None
        base = self._base(current)
        experts = self._experts(past, base, lambda counts, context, lower: counts.chances(context, lower, current))
        weighted = (weight * chances for weight, chances in zip(self._weights, experts, strict=True))
        mixed = sum(weighted, start=np.zeros(self.tasks))
        return mixed if mixed.any() else base

    def _experts(
        self, past: tuple[int, ...], base: _Chances, blend: Callable[[ContextCounts, Context, _Chances], _Chances]
    ) -> Iterator[_Chances]:
        """What each expert says, in the order of their weights.

        Each order blends with the next lower one, but the first with a prior if there is one: the prior knows the
        current task, and order 0 doesn't. An order that is longer than the past says what the one below it says.

        Args:
            past: latest first.
            base: what is assumed at first.
            blend: gives what counts say of a context, blended with what the lower order says.
        """
        yield base
        for orders in self._counts:
            chances = base
            for order, counts in enumerate(orders):
                if order == 1 and past and self._prior is not None:
                    chances = base
                if order <= len(past):
                    chances = blend(counts, past[:order], chances)
                yield chances


def _told(prior: Floats, tasks: int) -> Floats | None:
    """The prior, if it says anything. Raises `ValueError` if it is no transition matrix of so many tasks."""
    if prior.shape != (tasks, tasks) or not (prior >= 0).all() or not np.allclose(prior.sum(axis=1), 1.0):
        raise ValueError(f"expected a prior of {tasks} rows of probabilities, each summing to 1, got {prior.tolist()}")
    uniform = (1.0 - np.eye(tasks)) / max(1, tasks - 1)
    if tasks == 1 or np.allclose(prior, uniform):
        return None
    if prior.diagonal().any():
        raise ValueError(f"expected a prior in which no task follows itself, got diagonal {prior.diagonal().tolist()}")
    return np.asarray(prior / prior.sum(axis=1, keepdims=True))


def new_predictor(tasks: int, prior: npt.ArrayLike | None = None) -> LearningPredictor:
    """A predictor that has observed nothing; it begins with a transition matrix, or with none."""
    return MarkovPredictor(tasks, prior)
