"""The predictors that learn from the past alone, by name. A new one is a file of its own and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy.typing as npt

from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.predictor import LearningPredictor


class MakePredictor(Protocol):
    """Makes a predictor that has observed nothing."""

    def __call__(self, tasks: int, prior: npt.ArrayLike | None = None) -> LearningPredictor:
        """A predictor of so many tasks that begins with a transition matrix, or with none."""
        ...


PREDICTORS: Mapping[str, MakePredictor] = {"Markov": MarkovPredictor}

DEFAULT = "Markov"


def new_predictor(tasks: int, prior: npt.ArrayLike | None = None) -> LearningPredictor:
    """A predictor of the kind that engines use."""
    return PREDICTORS[DEFAULT](tasks, prior)
