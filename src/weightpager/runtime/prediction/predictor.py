"""What every predictor of the next task promises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.trace_file import Visit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forecast:
    """What may run next.

    Attributes:
        next: [tasks], probability that each task is the next one; 0 for the current one. Sums to 1, or is all 0 if
            nothing can be said.
        seconds: expected time left until the switch; None if unknown.
    """

    next: Floats
    seconds: float | None

    @cached_property
    def likeliest(self) -> int | None:
        """The most probable task, of equals the one with the lowest number; None if nothing can be said."""
        return int(self.next.argmax()) if self.next.any() else None


class TransitionPredictor(Protocol):
    """Learns from a history of visits. Tasks are numbers from 0; times are seconds of one clock.

    None is safe to use from several threads at once. The memory of each is bounded.
    """

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time. If it already was, nothing changes.

        Raises:
            ValueError: there is no such task, or the time isn't finite.
        """
        ...

    def interrupt(self) -> None:
        """What is observed next follows a gap: no switch leads there, and the present visit's length is unknown."""
        ...

    def forecast(self, seconds: float) -> Forecast:
        """What may run next, as seen at this time. Takes less than a millisecond with 64 tasks."""
        ...


class LearningPredictor(TransitionPredictor, Protocol):
    """A predictor that learns from the visits alone."""

    def after(self, task: int) -> Floats:
        """Probability of each task to follow this one [tasks], whatever came before it."""
        ...


def replay(predictor: TransitionPredictor, visits: Iterable[Visit], tasks: Sequence[str]) -> None:
    """Let a new predictor learn an earlier history, for example that of a bundle which had other tasks.

    A visit to a task that is no more is a gap, and so is the time before a visit that resumes.

    Args:
        predictor: one that has observed nothing.
        visits: oldest first.
        tasks: the name of each number.
    """
    numbers = {name: number for number, name in enumerate(tasks)}
    for visit in visits:
        number = numbers.get(visit.task)
        if visit.resumed or number is None:
            predictor.interrupt()
        if number is not None:
            predictor.observe(number, visit.start)


LEAST_CHANCE = 2.0**-20
"""A lower probability of what came counts as this one, which costs 20 bits."""


class PredictionScore:
    """Log loss and hits of forecasts.

    Attributes:
        forecasts: how many were scored.
        hits: how often the likeliest task came.
        bits: sum of ``-log2 P(what came)``.
    """

    def __init__(self) -> None:
        self.forecasts = 0
        self.hits = 0
        self.bits = 0.0

    def add(self, forecast: Forecast, came: int) -> None:
        """Score a forecast by the task that came. If it said nothing, all other tasks count as equally likely."""
        chance = float(forecast.next[came]) if forecast.next.any() else 1.0 / max(1, len(forecast.next) - 1)
        self.forecasts += 1
        self.hits += forecast.likeliest == came
        self.bits -= math.log2(max(chance, LEAST_CHANCE))

    @property
    def log_loss(self) -> float:
        """Mean bits per forecast; 0 before the first."""
        return self.bits / max(1, self.forecasts)

    @property
    def hit_rate(self) -> float:
        """Share of the forecasts whose likeliest task came; 0 before the first."""
        return self.hits / max(1, self.forecasts)
