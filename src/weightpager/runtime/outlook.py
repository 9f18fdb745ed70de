"""How much each task will be used soon."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction_score import PredictionScore
from weightpager.runtime.reuse import AHEAD_DISCOUNT, expected_reuse, expected_uses
from weightpager.runtime.transition_predictor import TransitionPredictor


class Outlook:
    """The next task by a predictor, those after it by how tasks have followed each other. Not thread-safe.

    Args:
        predictor: of the next task; it may know some visits already.
        switches: [tasks, tasks], how often one task was followed by another so far; changed by `observe`.

    Attributes:
        current: the task that runs; None before the first.
        score: how good forecasts have been.
    """

    def __init__(self, predictor: TransitionPredictor, switches: npt.NDArray[np.int64]) -> None:
        self._predictor = predictor
        self._switches = switches
        self.current: int | None = None
        self.score = PredictionScore()

    @property
    def tasks(self) -> int:
        """How many there are."""
        return len(self._switches)

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time."""
        if self.current is not None and task != self.current:
            self._switches[self.current, task] += 1
            self.score.add(self._predictor.forecast(seconds), task)
        self.current = task
        self._predictor.observe(task, seconds)

    def uses(self, seconds: float) -> npt.NDArray[np.float64] | None:
        """Expected uses of each task from now on [tasks], by the time; None if nothing can be said."""
        forecast = self._predictor.forecast(seconds)
        return expected_uses(self._switches, forecast.next, AHEAD_DISCOUNT) if forecast.next.any() else None

    def uses_after(self, task: int) -> npt.NDArray[np.float64]:
        """Expected uses of each task after one that comes now [tasks]."""
        return expected_reuse(self._switches, task)
