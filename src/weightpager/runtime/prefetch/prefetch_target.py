"""An arena that pages are prefetched into: one engine's, or one of several that share a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.paging.residency import Residency
from weightpager.runtime.planning.prefetch_planner import PrefetchPlan, plan_batch
from weightpager.runtime.prefetch.expected_uses import Floats
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial
from weightpager.runtime.prefetch.virtual_arena import UsesAt
from weightpager.store import StorageModel


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """What to prefetch next into an arena of this version; ``worth`` is that of its worthiest page, 0 for nothing."""

    residency: Residency
    plan: PrefetchPlan
    version: int
    worth: float


@dataclass(frozen=True, eq=False)
class PrefetchTarget:
    """An arena that pages are prefetched into.

    Attributes:
        residency: what is in it.
        page_bytes: bytes of a page.
        tasks: int [own tasks], by its own number the number that each of its tasks has among all that are foretold; -1
            for one that has left.
        trial: whether prefetching into it pays.
        differential_bytes: bytes to load for an average switch.
    """

    residency: Residency
    page_bytes: int
    tasks: npt.NDArray[np.int64]
    trial: PrefetchTrial
    differential_bytes: float

    def number(self, task: int | None) -> int | None:
        """Its own number of a task; None for one of another arena."""
        found = [] if task is None else np.flatnonzero(self.tasks == task).tolist()
        return found[0] if found else None

    def own(self, uses: Floats) -> Floats:
        """The uses of its own tasks, of those of all [tasks]."""
        return np.where(self.tasks >= 0, uses[self.tasks], 0.0)

    def learn(self, task: int, dwell: float, uses_at: UsesAt, uses_after: Floats, storage: StorageModel) -> None:
        """A task has come, of whichever arena, so many seconds after the one before."""
        self.trial.learn(self.number(task), dwell, uses_at, self.own, uses_after, storage)

    def plan(self, current: int | None, uses: Floats) -> PlannedBatch:
        """The pages that are worth most, beside those of the task that ran last, which may be one of another arena."""
        occupancy, worth, version = self.residency.snapshot(self.number(current), self.own(uses))
        batch, best = plan_batch(occupancy, worth, self.page_bytes)
        return PlannedBatch(self.residency, batch, version, best)
