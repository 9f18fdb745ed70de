"""The next task by how often each one runs, whatever came before."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.context_counts import ContextCounts
from weightpager.runtime.prediction.learner import Learner

Floats = npt.NDArray[np.float64]

MEMORY = 512.0


class FrequencyPredictor(Learner):
    """Order 0: the baseline that knows no sequence."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior)
        self._counts = ContextCounts(MEMORY, 1)

    def _learn(self, past: tuple[int, ...], task: int) -> None:  # noqa: ARG002 - order 0
        self._counts.add((), task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        current = past[0] if past else None
        return self._counts.chances((), self._base(current), current)
