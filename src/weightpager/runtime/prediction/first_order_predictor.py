"""The next task by which task is the current one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.context_counts import ContextCounts
from weightpager.runtime.prediction.frequency_predictor import FrequencyPredictor

Floats = npt.NDArray[np.float64]

MEMORY = 200.0


class FirstOrderPredictor(FrequencyPredictor):
    """Order 1: a transition matrix that is learnt, blended with how often each task runs."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior)
        self._rows = ContextCounts(MEMORY, tasks)

    def _learn(self, past: tuple[int, ...], task: int) -> None:
        super()._learn(past, task)
        self._rows.add(past[:1], task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        lower = self._base(past[0]) if past and self._prior is not None else super()._chances(past)
        return self._rows.chances(past[:1], lower) if past else lower
