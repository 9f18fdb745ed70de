"""A home for each task: the replica that gets all its requests, by all that a trace will ask for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import Pages
from weightpager.runtime.planning.task_pages import TaskPages

_MOST_SHARE = 1.3
"""Times the average share of the requests that a replica may have, unless one task alone has more."""


class TaskHomes:
    """Searches the replica of each task that makes the fewest pages come again and again.

    It takes every replica to keep the pages that its tasks use most; each use of another page is a load. From a start
    by the most used task first, tasks move one by one as long as that gains. So what it finds is good, and not proved
    to be the best.

    Args:
        needs: of each task the pages, ascending.
        pages: numbers that pages can have.
        slots: pages that a replica has room for.
        uses: how often each task will be asked for [tasks].
    """

    def __init__(self, needs: Sequence[Pages], pages: int, slots: int, uses: npt.NDArray[np.integer]) -> None:
        self._pages = TaskPages(needs, pages)
        self._slots = slots
        self._uses = uses.astype(np.float64)

    def search(self, replicas: int) -> list[int]:
        """The number of each task's replica."""
        most = max(_MOST_SHARE * self._uses.sum() / replicas, self._uses.max())
        homes = np.full(len(self._uses), -1)
        for task in np.argsort(-self._uses, kind="stable").tolist():
            homes[task] = self._best(homes, task, replicas, most)
        moved = True
        while moved:
            moved = False
            for task in range(len(homes)):
                best = self._best(homes, task, replicas, most)
                moved |= best != homes[task]
                homes[task] = best
        return [int(place) for place in homes]

    def _best(self, homes: npt.NDArray[np.int64], task: int, replicas: int, most: float) -> int:
        """Where a task loads least with all others where they are; where it is, unless another is better."""
        others = [(homes == replica) & (np.arange(len(homes)) != task) for replica in range(replicas)]
        alone = np.arange(len(homes)) == task
        loads = [self._loads(other | alone) - self._loads(other) for other in others]
        used = [float(self._uses[other].sum()) for other in others]
        allowed = [replica for replica in range(replicas) if used[replica] + self._uses[task] <= most + 1e-9]
        if not allowed:
            return int(homes[task]) if homes[task] >= 0 else int(np.argmin(used))
        return min(allowed, key=lambda replica: (round(loads[replica], 6), replica != homes[task], used[replica]))

    def _loads(self, tasks: npt.NDArray[np.bool_]) -> float:
        """Uses of the pages that a replica of these tasks can't keep."""
        uses = self._pages.sums(np.where(tasks, self._uses, 0.0))
        kept = np.partition(uses, len(uses) - self._slots)[-self._slots :] if self._slots < len(uses) else uses
        return float(uses.sum() - kept.sum())
