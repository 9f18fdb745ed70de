"""How much longer a whole compile takes: the work of its stages is estimated before, its pace as it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from weightpager.progress import Progress

WHOLE = "whole compile"
"""The stage that all others are part of; its steps are seconds, as estimated."""


class TimeLeft:
    """Seconds that are left, by a plan and a clock.

    A stage's own pace counts for what is left of it, the mean pace so far for the stages behind it. Stages come in the
    order of the plan. When a stage tells of its first step, all stages before it count as done, even those that told
    nothing because a journal or a cache had them.
    """

    def __init__(self, plan: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        """Expect these stages, in their order, each with its work in any unit that all share."""
        self._plan = dict(plan)
        self._clock = clock
        self._stage = ""
        self._since = self._last = self._first = self._share = 0.0
        self._worked = self._seconds = 0.0

    def told(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over; stages that aren't in the plan tell nothing."""
        if stage not in self._plan:
            return
        now, share = self._clock(), done / max(1, total)
        if stage == self._stage and share >= self._share:
            self._worked += (share - self._share) * self._plan[stage]
            self._seconds += now - self._last
        else:
            self._stage, self._since, self._first = stage, now, share
        self._share, self._last = share, now

    def left(self) -> float | None:
        """Seconds from now on; None as long as nothing has been seen to take time."""
        if self._worked <= 0 or self._seconds <= 0:
            return None
        pace = self._seconds / self._worked
        stages = list(self._plan)
        later = sum(self._plan[name] for name in stages[stages.index(self._stage) + 1 :])
        return (1 - self._share) * self._plan[self._stage] * self._own_pace(pace) + later * pace

    def _own_pace(self, otherwise: float) -> float:
        """Seconds for a unit of the running stage's work."""
        work = (self._share - self._first) * self._plan[self._stage]
        return (self._last - self._since) / work if work > 0 else otherwise


class WholeProgress:
    """Hands on what stages tell, and tells of the whole, once a second and once a plan is known."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._began = self._told = clock()
        self._left: TimeLeft | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over."""
        self._progress(stage, done, total)
        if self._left is None:
            return
        self._left.told(stage, done, total)
        left, now = self._left.left(), self._clock()
        if left is not None and now - self._told >= 1:
            self._told = now
            self._progress(WHOLE, round(now - self._began), round(now - self._began + left))

    def expect(self, plan: Mapping[str, float]) -> None:
        """Take the plan of the stages that will come."""
        self._left = TimeLeft(plan, self._clock)
