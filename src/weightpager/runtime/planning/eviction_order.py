"""Which pages go first: the policy of eviction."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.switch_plan import Pages
from weightpager.runtime.planning.task_pages import TaskPages


class EvictionOrder:
    """What tasks will use least goes first, among equals what was used least recently; what has just come goes last.

    Not thread-safe. Time is counted in uses of tasks.
    """

    def __init__(self, needs: TaskPages, pages: int, residence: int) -> None:
        """Nothing was used yet.

        Args:
            needs: of the tasks; `add_task` tells of each that came later.
            pages: numbers that pages can have.
            residence: uses after a page came during which it goes only if nothing else can.
        """
        self._needs = needs
        self._residence = residence
        self._uses = 0
        self._last_use = np.zeros(needs.tasks, np.int64)
        self._came = np.zeros(pages, np.int64)

    def used(self, task: int) -> None:
        """A task is used now."""
        self._uses += 1
        self._last_use[task] = self._uses

    def came(self, pages: Pages) -> None:
        """Pages have become resident."""
        self._came[pages] = self._uses

    def add_task(self) -> None:
        """There is one more."""
        self._last_use = np.append(self._last_use, 0)

    def sort(self, pages: Pages, reuse: npt.NDArray[np.floating] | None) -> Pages:
        """Resident pages in the order in which to give them up.

        Args:
            pages: ascending.
            reuse: [tasks], expected uses of each in the near future; None goes by recency alone.
        """
        last_use = self._needs.greatest(self._last_use, pages)
        new = (self._residence > 0) & (self._uses <= self._came[pages] + self._residence)
        order = np.lexsort((last_use, new) if reuse is None else (last_use, self._needs.sums(reuse)[pages], new))
        ordered: Pages = pages[order]
        return ordered
