"""What predictors that learn have in common: where they are, how long visits last, what an elapsed time says."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.dwell_times import DwellTimes
from weightpager.runtime.prediction.predictor import Forecast

Floats = npt.NDArray[np.float64]

_LEAST_SURVIVAL = 1e-6


class Learner(ABC):
    """Follows the sequence of visits; a subclass says what follows what.

    Args:
        tasks: how many there are.
        prior: [tasks, tasks], the bundle's transition matrix, rows summing to 1: what to assume at first. One in which
            every other task is as likely as the next says nothing, and counts as none.
    """

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        if tasks < 1:
            raise ValueError(f"expected at least one task, got {tasks}")
        self.tasks = tasks
        self._prior = None if prior is None else _told(np.array(prior, np.float64), tasks)
        self._dwell = DwellTimes()
        self._past: tuple[int, ...] = ()  # latest first; the current task, unless there is a gap
        self._since = 0.0
        self._next: Floats | None = None

    _reach = 1  # visits that matter

    def observe(self, task: int, seconds: float) -> None:
        """See ``TransitionPredictor``. A clock that goes backwards gives a visit of no length."""
        if not (0 <= task < self.tasks and math.isfinite(seconds)):
            raise ValueError(f"expected a task from 0 to {self.tasks - 1} at a finite time, got {task} at {seconds}")
        if self._past and self._past[0] == task:
            return
        if self._past:
            self._dwell.add(self._past[0], task, seconds - self._since)
            self._learn(self._past, task)
        self._past = (task, *self._past[: self._reach - 1])
        self._since, self._next = seconds, None

    def interrupt(self) -> None:
        """See ``Interruptible``."""
        self._past, self._next = (), None

    def forecast(self, seconds: float) -> Forecast:
        """See ``TransitionPredictor``.

        A candidate's probability is weighted by that of a visit which leads there and still goes on; a visit longer
        than any that was seen tells nothing.
        """
        if self._next is None:
            self._next = self._chances(self._past)
        if not self._past or not self._next.any():
            return Forecast(self._next, None)
        current, elapsed = self._past[0], seconds - self._since
        candidates = np.flatnonzero(self._next)
        survival, left = self._dwell.onward(current, candidates.tolist(), elapsed)
        weights = self._next[candidates] * np.maximum(survival, _LEAST_SURVIVAL)
        weights /= weights.sum()
        chances = np.zeros(self.tasks)
        chances[candidates] = weights
        seconds = float(weights @ left)
        return Forecast(chances, None if math.isnan(seconds) else seconds)

    def after(self, task: int) -> Floats:
        """Probability of each task to follow this one [tasks], whatever came before it."""
        return self._chances((task,))

    def _base(self, current: int | None) -> Floats:
        """What to assume of the next task, [tasks]: the prior, or all others alike."""
        if self._prior is not None:
            return np.asarray(self._prior.mean(axis=0) if current is None else self._prior[current])
        others = np.ones(self.tasks)
        if current is not None:
            others[current] = 0.0
        return np.asarray(others / max(1.0, others.sum()))

    @abstractmethod
    def _learn(self, past: tuple[int, ...], task: int) -> None:
        """The task followed the past, latest first."""

    @abstractmethod
    def _chances(self, past: tuple[int, ...]) -> Floats:
        """Probability of each task, [tasks], by what has come before; 0 for the current one."""


def _told(prior: Floats, tasks: int) -> Floats | None:
    """The prior, if it says anything.

    Raises:
        ValueError: it is no transition matrix of so many tasks.
    """
    if prior.shape != (tasks, tasks) or not (prior >= 0).all() or not np.allclose(prior.sum(axis=1), 1.0):
        raise ValueError(f"expected a prior of {tasks} rows of probabilities, each summing to 1, got {prior.tolist()}")
    uniform = (1.0 - np.eye(tasks)) / max(1, tasks - 1)
    if tasks == 1 or np.allclose(prior, uniform):
        return None
    if prior.diagonal().any():
        raise ValueError(f"expected a prior in which no task follows itself, got diagonal {prior.diagonal().tolist()}")
    return np.asarray(prior / prior.sum(axis=1, keepdims=True))
