"""The predictor that engines and simulations use: the one place to exchange it."""

from __future__ import annotations

import numpy.typing as npt

from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.predictor import LearningPredictor


def new_predictor(tasks: int, prior: npt.ArrayLike | None = None) -> LearningPredictor:
    """A predictor that has observed nothing; it begins with a transition matrix, or with none."""
    return MarkovPredictor(tasks, prior)
