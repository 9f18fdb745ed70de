"""How long visits last, by where they lead."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

SHORTEST = 1e-6
"""Seconds; a visit that is over sooner counts as one of this length."""

_MEMORY = 64.0
_SHRINKAGE = 2.0
_FAR = 6.0  # standard deviations
_LEAST_SPREAD = 0.05  # of ln(seconds); a fixed time still varies by some per cent
_LOGS = math.log(SHORTEST), math.log(1e9)


@dataclass
class _Moments:
    """Weight, mean and summed squared deviations of ln(seconds), the past fading."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        keep = 1.0 - 1.0 / _MEMORY
        self.weight = self.weight * keep + 1.0
        step = value - self.mean
        self.mean += step / self.weight
        self.squares = self.squares * keep + step * (value - self.mean)


@dataclass(frozen=True)
class _LogNormal:
    """Of seconds, by mean and variance of their logarithm."""

    mean: float
    variance: float

    def shrunk(self, seen: _Moments) -> _LogNormal:
        """What was seen, pulled towards this distribution as if it had been seen ``_SHRINKAGE`` times."""
        total = seen.weight + _SHRINKAGE
        mean = (seen.weight * seen.mean + _SHRINKAGE * self.mean) / total
        apart = seen.weight * (seen.mean - mean) ** 2 + _SHRINKAGE * (self.mean - mean) ** 2
        return _LogNormal(mean, (seen.squares + _SHRINKAGE * self.variance + apart) / total)

    def survival(self, seconds: float) -> float:
        """Probability that a visit lasts longer."""
        return _above((math.log(seconds) - self.mean) / self.spread)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the logarithm."""
        return max(_LEAST_SPREAD, math.sqrt(self.variance))

    def left(self, seconds: float) -> float:
        """Expected seconds left for a visit that has lasted so long.

        ``E[T | T > s] - s`` of a log-normal T: ``exp(m + v / 2) · Q(z - √v) / Q(z) - s`` with ``z = (ln s - m) / √v``
        and Q the normal distribution's upper tail. Where that vanishes, ``s · v / (ln s - m)``, which it tends to.
        """
        z = (math.log(seconds) - self.mean) / self.spread
        if z > _FAR:
            return seconds * self.spread / z
        whole = math.exp(min(_LOGS[1], self.mean + self.spread**2 / 2)) * _above(z - self.spread) / _above(z)
        return max(0.0, whole - seconds)


class DwellTimes:
    """Log-normal dwell times of each (task, next task), shrunk to those of the task, and these to those of all.

    Args:
        capacity: pairs kept; the one that wasn't seen for longest goes first.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._all = _Moments()
        self._tasks: dict[int, _Moments] = {}
        self._pairs: OrderedDict[tuple[int, int], _Moments] = OrderedDict()

    def add(self, task: int, following: int, seconds: float) -> None:
        """A visit to ``task`` lasted so long and led to ``following``."""
        value = _logarithm(seconds)
        pair = self._pairs.setdefault((task, following), _Moments())
        self._pairs.move_to_end((task, following))
        for moments in (self._all, self._tasks.setdefault(task, _Moments()), pair):
            moments.add(value)
        if len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)

    def onward(self, task: int, following: Sequence[int], seconds: float) -> tuple[Floats, Floats]:
        """Of a visit to ``task`` that has lasted so long, by where it may lead.

        Returns:
            [following], the probability that a visit which leads there lasts longer than this; and [following], the
            expected seconds left of it. NaN before the first visit has ended.
        """
        if not self._all.weight:
            return np.ones(len(following)), np.full(len(following), math.nan)
        seconds = math.exp(_logarithm(seconds))
        found = self._distributions(task, following)
        return (
            np.array([distribution.survival(seconds) for distribution in found]),
            np.array([distribution.left(seconds) for distribution in found]),
        )

    def _distributions(self, task: int, following: Sequence[int]) -> list[_LogNormal]:
        everywhere = _LogNormal(self._all.mean, 1.0).shrunk(self._all)
        here = everywhere.shrunk(self._tasks.get(task, _Moments()))
        pairs = (self._pairs.get((task, other)) for other in following)
        return [here if pair is None else here.shrunk(pair) for pair in pairs]


def _logarithm(seconds: float) -> float:
    return min(_LOGS[1], max(_LOGS[0], math.log(max(seconds, SHORTEST))))


def _above(z: float) -> float:
    """Upper tail of the normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2))
