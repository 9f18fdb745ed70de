"""How much each task will be used soon: by this, prefetch and eviction value pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prediction.predictor import PredictionScore, TransitionPredictor

Floats = npt.NDArray[np.float64]

DISCOUNT = 0.5
"""What a use is worth that comes one switch later."""

_SHRINKAGE = 2.0
"""Visits of average length that are added to those of every task."""


class ExpectedUses:
    """A predictor says the next task; counts of switches say the tasks after it. Not thread-safe.

    Attributes:
        current: the task that runs; None before the first.
        load_seconds: how long it takes to load what an average switch must; changes with the storage.
        score: how good forecasts have been.
    """

    def __init__(
        self,
        predictor: TransitionPredictor,
        switches: npt.NDArray[np.int64],
        dwells: Sequence[Sequence[float]],
        load_seconds: float,
    ) -> None:
        """Go on from what has been seen already.

        Args:
            predictor: of the next task; it knows the earlier visits.
            switches: [tasks, tasks], how often one task was followed by another so far; changed by `observe`.
            dwells: of each task the seconds that earlier visits have lasted.
            load_seconds: how long it takes to load what an average switch must.
        """
        self._predictor = predictor
        self._switches = switches
        self._seconds = np.array([sum(dwell) for dwell in dwells], np.float64)
        self._visits = np.array([len(dwell) for dwell in dwells], np.float64)
        self._since: float | None = None
        self.current: int | None = None
        self.load_seconds = load_seconds
        self.score = PredictionScore()

    @classmethod
    def blank(cls, predictor: TransitionPredictor, tasks: int, load_seconds: float) -> ExpectedUses:
        """An estimate before anything has been seen."""
        return cls(predictor, np.zeros((tasks, tasks), np.int64), [()] * tasks, load_seconds)

    @property
    def tasks(self) -> int:
        """How many tasks there are."""
        return len(self._switches)

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time."""
        if self.current is not None and task != self.current:
            self._switches[self.current, task] += 1
            if self._since is not None:
                self._seconds[self.current] += seconds - self._since
                self._visits[self.current] += 1
            self.score.add(self._predictor.forecast(seconds), task)
        if task != self.current:
            self._since = seconds
        self.current = task
        self._predictor.observe(task, seconds)

    def uses(self, seconds: float) -> Floats | None:
        """Expected uses of each task from now on [tasks], by the time; None if nothing can be said.

        What follows a task counts less the longer its visits last, since it can still be loaded during them.
        """
        forecast = self._predictor.forecast(seconds)
        if not forecast.next.any():
            return None
        discount = self.load_seconds / (self.load_seconds + self._dwell() + 1e-9)
        return expected_uses(self._switches, forecast.next, discount)

    def uses_after(self, task: int) -> Floats:
        """Expected uses of each task [tasks], once this one runs."""
        return expected_uses_after(self._switches, task)

    def _dwell(self) -> Floats:
        """Mean seconds of a visit to each task [tasks]; as long as a load takes, before any visit has ended."""
        visits = self._visits.sum()
        mean = self._seconds.sum() / visits if visits else self.load_seconds
        return np.asarray((self._seconds + _SHRINKAGE * mean) / (self._visits + _SHRINKAGE))


def expected_uses_after(switches: npt.NDArray[np.integer], task: int) -> npt.NDArray[np.float64]:
    """Expected uses of each task after ``task``, one k switches away counting `DISCOUNT` to the power of k - 1.

    Args:
        switches: [tasks, tasks], how often one task was followed by another. Tasks of which nothing is known yet are
            followed by any other with the same probability.
        task: the one that runs next.
    """
    chances = _chances(switches)
    return _uses(chances, chances[task], DISCOUNT)


def expected_uses(
    switches: npt.NDArray[np.integer], following: npt.NDArray[np.floating], discount: float | npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Expected uses of each task [tasks], as by `expected_uses_after`, when the next one is known by its chances.

    With p those chances, P the matrix of transition probabilities and G a diagonal of discounts: ``p (I - G P)^-1``.

    Args:
        switches: [tasks, tasks], how often one task was followed by another.
        following: [tasks], probability that each is the next.
        discount: what a use is worth that comes one switch later; or, for each task, what follows it [tasks].
    """
    return _uses(_chances(switches), following, discount)


def _uses(chances: Floats, following: npt.NDArray[np.floating], discount: float | npt.NDArray[np.floating]) -> Floats:
    now_and_later = -chances.T * discount  # this and the next line run at every switch that must choose
    now_and_later.flat[:: len(chances) + 1] += 1
    uses: Floats = np.linalg.solve(now_and_later, following)
    return uses


def _chances(switches: npt.NDArray[np.integer]) -> Floats:
    count = len(switches)
    counts = switches + 1 / max(1, count - 1)
    counts.flat[:: count + 1] -= 1 / max(1, count - 1)
    chances: Floats = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    return chances
