"""Predictions by a function of the user's, who may know the route."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.config import is_number
from weightpager.runtime.prediction.predictor import Forecast, TransitionPredictor
from weightpager.trace_file import Visit

_log = logging.getLogger(__name__)

Planner = Callable[[Sequence[Visit]], Mapping[str, float]]
"""A function of yours that knows the route, for ``prefetch=`` of `Engine.from_pretrained`.

It gets up to 1000 latest visits, oldest first and the present one last, and gives a weight to each task that may come
next: a probability, or any finite number from 0 up. Tasks that it leaves out weigh 0, and so does the current one.
Where no task has a weight, what was learnt from the past serves. So it does where the function raises or gives anything
else, and the log says so once."""


class CallablePredictor:
    """Asks a user's planner; falls back to another predictor when the planner fails or has nothing to say.

    An answer without any weight means that the planner doesn't know. Anything that isn't a mapping from the names of
    tasks to finite weights from 0 up, and any exception, is a bad answer: the fallback serves, and a warning is logged
    the first time. A planner that hangs hangs the thread that asks for the forecast; nothing here can end it.

    Args:
        planner: see ``Planner``. Called once per forecast.
        tasks: the name of each number.
        fallback: learns from every visit, and says when the switch will come.
        limit: visits that the planner is given at most.
    """

    def __init__(
        self, planner: Planner, tasks: Sequence[str], fallback: TransitionPredictor, limit: int = 1000
    ) -> None:
        self._planner = planner
        self._tasks = tuple(tasks)
        self._numbers = {name: number for number, name in enumerate(self._tasks)}
        self._fallback = fallback
        self._visits: deque[Visit] = deque(maxlen=limit)
        self._gap = False
        self._warned = False

    def observe(self, task: int, seconds: float) -> None:
        self._fallback.observe(task, seconds)
        if self._gap or not self._visits or self._visits[-1].task != self._tasks[task]:
            self._visits.append(Visit(self._tasks[task], seconds, resumed=self._gap))
        self._gap = False

    def interrupt(self) -> None:
        self._gap = bool(self._visits)
        self._fallback.interrupt()

    def forecast(self, seconds: float) -> Forecast:
        fallback = self._fallback.forecast(seconds)
        try:
            weights = self._weights(self._planner(tuple(self._visits)))
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything, and prediction is only a help
            self._warn(error)
            return fallback
        return fallback if weights is None else Forecast(weights, fallback.seconds)

    def _weights(self, answer: object) -> npt.NDArray[np.float64] | None:
        """Probabilities [tasks]; None if the answer has no weight. Raises `ValueError` if it is a bad answer."""
        if not isinstance(answer, Mapping):
            raise ValueError(f"expected a mapping from task names to weights, got {type(answer).__name__}")
        weights = np.zeros(len(self._tasks))
        for name, weight in answer.items():
            if name not in self._numbers:
                raise ValueError(f"expected names of tasks, got {str(name)[:80]!r}")
            weights[self._numbers[name]] = _weight(name, weight)
        if self._visits and not self._gap:
            weights[self._numbers[self._visits[-1].task]] = 0.0
        if not weights.any():
            return None
        weights /= weights.max()  # their sum may be too large for a number
        return np.asarray(weights / weights.sum())

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            _log.warning("the planner's answer isn't used, nor will later ones like it be: %r", error)
        self._warned = True


def _weight(name: str, weight: Any) -> float:
    if not is_number(weight):
        raise ValueError(f"{name}: expected a number, got {type(weight).__name__}")
    number = float(weight)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name}: expected a finite weight from 0 up, got {number}")
    return number
