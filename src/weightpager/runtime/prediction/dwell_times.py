"""How long visits last, depending on the task and the next one."""

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
"""Seconds. A shorter visit counts as one of this length."""

_MEMORY = 64.0
_SHRINKAGE = 16.0
_FAR = 6.0  # standard deviations
_LEAST_SPREAD = 0.05  # of ln(seconds); a fixed time still varies by some per cent
_LOGS = math.log(SHORTEST), math.log(1e9)


@dataclass(slots=True)
class _Moments:
    """Weight, mean and summed squared deviations of ln(seconds). Older values count less and less."""

    weight: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> float:
        """Add a value. Returns the squared deviation that it brings.

        From the second value on, the mean of what is returned is the variance.
        """
        keep = 1.0 - 1.0 / _MEMORY
        self.weight = self.weight * keep + 1.0
        step = value - self.mean
        self.mean += step / self.weight
        added = step * (value - self.mean)
        self.squares = self.squares * keep + added
        return added


_NONE = _Moments()


@dataclass
class _Pool:
    """The variance of values within their groups, over all groups; 1 at first."""

    weight: float = 4.0
    variance: float = 1.0

    def add(self, added: float) -> None:
        self.weight = min(self.weight + 1.0, _MEMORY * _MEMORY)
        self.variance += (added - self.variance) / self.weight


@dataclass(frozen=True)
class _LogNormal:
    """A distribution of seconds, by mean and variance of their logarithm."""

    mean: float
    variance: float

    def shrunk(self, seen: _Moments, within: float, between: float) -> _LogNormal:
        """The distribution of a group, after some of its values were seen; means of groups are distributed as this one.

        The mean is the normal-normal posterior, ``(n x / w + m / b) / (n / w + 1 / b)`` with variances w within and b
        between groups; its own variance is added to that of the values.
        """
        if not between:
            return _LogNormal(self.mean, within)
        precision = seen.weight / within + 1.0 / between
        mean = (seen.weight * seen.mean / within + self.mean / between) / precision
        variance = (seen.squares + _SHRINKAGE * within) / (seen.weight + _SHRINKAGE)
        return _LogNormal(mean, variance + 1.0 / precision)

    def survival(self, seconds: float) -> float:
        """Probability that a visit lasts longer."""
        return _above((math.log(seconds) - self.mean) / self.spread)

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the logarithm."""
        return max(_LEAST_SPREAD, math.sqrt(self.variance))

    def left(self, seconds: float) -> float:
        """Expected seconds left of a visit that has lasted for these.

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

    How much, depends on how different the groups have been: where it makes no difference what comes next, their
    means are the same, and an elapsed time says nothing.

    Args:
        capacity: pairs kept; the one that wasn't seen for longest goes first.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self._capacity = capacity
        self._all = _Moments()
        self._tasks: dict[int, _Moments] = {}
        self._pairs: OrderedDict[tuple[int, int], _Moments] = OrderedDict()
        self._overall, self._in_tasks, self._in_pairs = _Pool(), _Pool(), _Pool()

    def add(self, task: int, following: int, seconds: float) -> None:
        """A visit to ``task`` lasted so long and led to ``following``."""
        value = _logarithm(seconds)
        pair = self._pairs.setdefault((task, following), _Moments())
        self._pairs.move_to_end((task, following))
        groups = (self._all, self._tasks.setdefault(task, _Moments()), pair)
        for moments, pool in zip(groups, (self._overall, self._in_tasks, self._in_pairs), strict=True):
            added = moments.add(value)
            if moments.weight > 1.0:
                pool.add(added)
        if len(self._pairs) > self._capacity:
            self._pairs.popitem(last=False)

    def onward(self, task: int, following: Sequence[int], seconds: float) -> tuple[Floats, Floats]:
        """What is left of a visit to ``task`` after so many seconds, for each task that may follow.

        Returns:
            [following], the probability that a visit which leads there lasts longer than this; and [following], the
            expected seconds left of it. NaN before the first visit has ended.
        """
        if not self._all.weight:
            return np.ones(len(following)), np.full(len(following), math.nan)
        seconds = math.exp(_logarithm(seconds))
        distributions = self._distributions(task, following)
        return (
            np.array([distribution.survival(seconds) for distribution in distributions]),
            np.array([distribution.left(seconds) for distribution in distributions]),
        )

    def _distributions(self, task: int, following: Sequence[int]) -> list[_LogNormal]:
        tasks = max(0.0, self._overall.variance - self._in_tasks.variance)
        successors = max(0.0, self._in_tasks.variance - self._in_pairs.variance)
        within = max(_LEAST_SPREAD**2, self._in_pairs.variance)
        everywhere = _LogNormal(self._all.mean, self._overall.variance)
        in_task = everywhere.shrunk(self._tasks.get(task, _NONE), within + successors, tasks)
        unseen = in_task.shrunk(_NONE, within, successors)
        pairs = (self._pairs.get((task, other)) for other in following)
        return [unseen if pair is None else in_task.shrunk(pair, within, successors) for pair in pairs]


def _logarithm(seconds: float) -> float:
    return min(_LOGS[1], max(_LOGS[0], math.log(max(seconds, SHORTEST))))


def _above(z: float) -> float:
    """Upper tail of the normal distribution."""
    return 0.5 * math.erfc(z / math.sqrt(2))
