"""Those that know a trace, or how it was made: they tell what is possible, and what harm a wrong one does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.predictor import Forecast
from weightpager.runtime.prediction.task_monitor import DISCOUNT
from weightpager.runtime.prefetch.expected_uses import ExpectedUses

Floats = npt.NDArray[np.float64]

_HORIZON = 40
"""Switches ahead that are looked at: what comes later counts nothing."""


class Oracle:
    """Knows what comes, and values it as the engine does what it expects: the nearer, the more.

    Attributes:
        place: visits observed so far.
    """

    def __init__(self, trace: Sequence[int], tasks: int) -> None:
        """Know a trace.

        Args:
            trace: the tasks as they will come.
            tasks: how many there are.
        """
        self._trace = np.array(trace)
        self._tasks = tasks
        self.place = 0

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        assert self._trace[self.place] == task
        self.place += 1

    def uses(self, seconds: float) -> Floats:  # noqa: ARG002 - the protocol's
        return self._from(self.place)

    def uses_after(self, task: int) -> Floats:  # noqa: ARG002 - the protocol's
        return self._from(self.place + 1)

    def _from(self, place: int) -> Floats:
        ahead = self._trace[place : place + _HORIZON]
        return np.bincount(ahead, DISCOUNT ** np.arange(len(ahead)), self._tasks).astype(np.float64)


class Known:
    """A predictor that knows the probabilities by which a trace of first order was made."""

    def __init__(self, matrix: Floats) -> None:
        """Know the matrix [tasks, tasks]."""
        self._matrix = matrix
        self._current = 0

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        self._current = task

    def interrupt(self) -> None:
        """See `TransitionPredictor`."""

    def forecast(self, seconds: float) -> Forecast:  # noqa: ARG002 - the protocol's
        return Forecast(self._matrix[self._current], None)


class Liar:
    """Says the reverse for a while: what won't be used is told to be used. About eviction it doesn't lie."""

    def __init__(self, learner: ExpectedUses, oracle: Oracle, lies: int) -> None:
        """Know a trace, but don't tell.

        Args:
            learner: what it is compared with, and evicts like.
            oracle: whose forecasts are reversed.
            lies: visits until it says the truth.
        """
        self._learner, self._oracle, self._lies = learner, oracle, lies

    def observe(self, task: int, seconds: float) -> None:
        self._learner.observe(task, seconds)
        self._oracle.observe(task, seconds)

    def uses(self, seconds: float) -> Floats:
        truth = self._oracle.uses(seconds)
        return truth if self._oracle.place > self._lies else np.asarray(truth.max() - truth)

    def uses_after(self, task: int) -> Floats:
        return self._learner.uses_after(task)
