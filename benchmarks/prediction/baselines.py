"""Predictors that know less than the engine's: what it is compared with."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.markov import ContextCounts, MarkovPredictor

Floats = npt.NDArray[np.float64]


class FrequencyPredictor(MarkovPredictor):
    """Order 0: the next task by how often each one runs, whatever came before."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior, order=0)
        self._frequencies = ContextCounts(512.0, 1)

    def _learn(self, past: tuple[int, ...], task: int) -> None:  # noqa: ARG002 - order 0
        self._frequencies.add((), task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        current = past[0] if past else None
        return self._frequencies.chances((), self._base(current), current)


class FirstOrderPredictor(FrequencyPredictor):
    """Order 1: a transition matrix that is learnt, blended with how often each task runs."""

    def __init__(self, tasks: int, prior: npt.ArrayLike | None = None) -> None:
        super().__init__(tasks, prior)
        self._rows = ContextCounts(200.0, tasks)

    def _learn(self, past: tuple[int, ...], task: int) -> None:
        super()._learn(past, task)
        self._rows.add(past[:1], task)

    def _chances(self, past: tuple[int, ...]) -> Floats:
        lower = self._base(past[0]) if past and self._prior is not None else super()._chances(past)
        return self._rows.chances(past[:1], lower) if past else lower
