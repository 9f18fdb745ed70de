"""`Forecasts`: what an engine's past says of its next task, whether anything is prefetched or not."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.engine.open_bundle import OpenBundle
from weightpager.runtime.prediction.markov import new_predictor
from weightpager.runtime.prediction.predictor import (
    Forecast,
    LearningPredictor,
    PredictionScore,
    TransitionPredictor,
    replay,
)
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.trace_file import Visit

_MOST_VISITS = 2000
"""Visits of the history that are learnt from. What was earlier would have faded."""


@dataclass(frozen=True, eq=False)
class ForecastReport:
    """What the past says of the next task. Probabilities of a mapping sum to 1.

    Attributes:
        next: task → probability that it is the next one, by all that has come before; empty while no task is current.
        seconds: expected seconds until it comes; None if nothing can be said.
        after: task → task → probability to follow it, whatever came before it.
        switches: number of switches that were foretold, in hindsight where nobody had asked before they came.
        hit_rate: share of them that led to the likeliest task.
        log_loss: bits per switch that forecasts have missed by, the less the better.
    """

    next: Mapping[str, float]
    seconds: float | None
    after: Mapping[str, Mapping[str, float]]
    switches: int
    hit_rate: float
    log_loss: float


class Forecasts:
    """Learns from the visits whenever it is asked, with or without prefetch. Safe to use from several threads.

    It has a predictor of its own, since the prefetcher's belongs to a thread that a user's planner may hang.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor) -> None:
        self._opened = opened
        self._monitor = monitor
        self._lock = threading.Lock()
        self._begin(opened.bundle)

    def now(self) -> ForecastReport | None:
        """The forecast as of now; None before the first visit."""
        with self._lock:
            if self._bundle is not self._opened.bundle:
                self._begin(self._opened.bundle)
            self._catch_up()
            return None if self._last is None else self._report(self._monitor.current is not None)

    def _begin(self, bundle: Bundle) -> None:
        """Start with a bundle's tasks and no visits."""
        self._bundle, self._names = bundle, list(bundle.tasks)
        self._scored = _ScoredPredictor(new_predictor(len(self._names), bundle.manifest.transitions))
        self._last: Visit | None = None

    def _catch_up(self) -> None:
        visits = self._monitor.visits()[-_MOST_VISITS:]
        fresh = list(takewhile(lambda visit: visit is not self._last, reversed(visits)))[::-1]
        replay(self._scored, fresh, self._names)
        self._last = visits[-1] if visits else None

    def _report(self, in_a_visit: bool) -> ForecastReport:
        predictor, score = self._scored.predictor, self._scored.score
        forecast = self._scored.forecast(time.monotonic())
        return ForecastReport(
            next=self._by_name(forecast.next) if in_a_visit else {},
            seconds=forecast.seconds if in_a_visit else None,
            after={name: self._by_name(predictor.after(task)) for task, name in enumerate(self._names)},
            switches=score.forecasts,
            hit_rate=score.hit_rate,
            log_loss=score.log_loss,
        )

    def _by_name(self, chances: npt.NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self._names, chances.tolist(), strict=True))


class _ScoredPredictor(TransitionPredictor):
    """A predictor, and how good its forecasts have been."""

    def __init__(self, predictor: LearningPredictor) -> None:
        self.predictor = predictor
        self.score = PredictionScore()
        self._current: int | None = None

    def observe(self, task: int, seconds: float) -> None:
        if self._current not in (None, task):
            self.score.add(self.forecast(seconds), task)
        self._current = task
        self.predictor.observe(task, seconds)

    def forecast(self, seconds: float) -> Forecast:
        return self.predictor.forecast(seconds)

    def interrupt(self) -> None:
        self._current = None
        self.predictor.interrupt()
