"""How much each task will be used soon: by this, prefetch and eviction value pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.predictor import PredictionScore, TransitionPredictor
from weightpager.runtime.prediction.task_monitor import expected_uses, expected_uses_after

Floats = npt.NDArray[np.float64]

_SHRINKAGE = 2.0
"""Visits of average length that are added to those of every task."""


class ExpectedUses:
    """A predictor says the next task; counts of switches say the tasks after it. Not thread-safe.

    Attributes:
        current: the task that runs; None before the first.
        load_seconds: how long it takes to load what an average switch must; changes with the storage.
        score: how good forecasts have been.
    """

    def __init__(
        self,
        predictor: TransitionPredictor,
        switches: npt.NDArray[np.int64],
        dwells: Sequence[Sequence[float]],
        load_seconds: float,
    ) -> None:
        """Go on from what has been seen already.

        Args:
            predictor: of the next task; it knows the earlier visits.
            switches: [tasks, tasks], how often one task was followed by another so far; changed by `observe`.
            dwells: of each task the seconds that earlier visits have lasted.
            load_seconds: how long it takes to load what an average switch must.
        """
        self._predictor = predictor
        self._switches = switches
        self._seconds = np.array([sum(dwell) for dwell in dwells], np.float64)
        self._visits = np.array([len(dwell) for dwell in dwells], np.float64)
        self._since: float | None = None
        self.current: int | None = None
        self.load_seconds = load_seconds
        self.score = PredictionScore()

    @classmethod
    def blank(cls, predictor: TransitionPredictor, tasks: int, load_seconds: float) -> ExpectedUses:
        """An estimate before anything has been seen."""
        return cls(predictor, np.zeros((tasks, tasks), np.int64), [()] * tasks, load_seconds)

    @property
    def tasks(self) -> int:
        return len(self._switches)

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time."""
        if self.current is not None and task != self.current:
            self._switches[self.current, task] += 1
            if self._since is not None:
                self._seconds[self.current] += seconds - self._since
                self._visits[self.current] += 1
            self.score.add(self._predictor.forecast(seconds), task)
        if task != self.current:
            self._since = seconds
        self.current = task
        self._predictor.observe(task, seconds)

    def uses(self, seconds: float) -> Floats | None:
        """Expected uses of each task from now on [tasks], by the time; None if nothing can be said.

        What follows a task counts less the longer its visits last, since it can still be loaded during them.
        """
        forecast = self._predictor.forecast(seconds)
        if not forecast.next.any():
            return None
        discount = self.load_seconds / (self.load_seconds + self._dwell() + 1e-9)
        return expected_uses(self._switches, forecast.next, discount)

    def uses_after(self, task: int) -> Floats:
        """Expected uses of each task [tasks], once this one runs."""
        return expected_uses_after(self._switches, task)

    def _dwell(self) -> Floats:
        """Mean seconds of a visit to each task [tasks]; as long as a load takes, before any visit has ended."""
        visits = self._visits.sum()
        mean = self._seconds.sum() / visits if visits else self.load_seconds
        return np.asarray((self._seconds + _SHRINKAGE * mean) / (self._visits + _SHRINKAGE))
