"""Which pages go first: the policy of eviction."""

from __future__ import annotations

import numpy as np

from weightpager.runtime.planning.plans import Pages, Uses
from weightpager.runtime.planning.task_pages import TaskPages


class EvictionOrder:
    """What tasks will use least goes first, and among equals what was used least recently.

    Not thread-safe. Time is counted in uses of tasks.
    """

    def __init__(self, needs: TaskPages) -> None:
        """Nothing was used yet.

        Args:
            needs: of the tasks; `add_task` tells of each that came later.
        """
        self._needs = needs
        self._uses = 0
        self._last_use = np.zeros(needs.tasks, np.int64)

    def used(self, task: int) -> None:
        """A task is used now."""
        self._uses += 1
        self._last_use[task] = self._uses

    def add_task(self) -> None:
        """A task was added."""
        self._last_use = np.append(self._last_use, 0)

    def sort(self, pages: Pages, expected_uses: Uses | None) -> Pages:
        """Resident pages in the order in which to give them up.

        Args:
            pages: ascending.
            expected_uses: of each task; None goes by recency alone.
        """
        last_use = self._needs.greatest(self._last_use, pages)
        order = np.lexsort((last_use,) if expected_uses is None else (last_use, self._needs.sums(expected_uses)[pages]))
        ordered: Pages = pages[order]
        return ordered
