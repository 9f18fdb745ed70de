"""Whether loading ahead pays: it is done in virtual time, beside an arena in which it isn't."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from weightpager.runtime.prefetch.virtual_arena import Rehearsal, UsesAt
from weightpager.store import StorageModel

MEMORY, ALERTNESS = 0.97, 0.9
"""What a switch counts when the next has come: some thirty switches decide, and the latest ten may stop it."""

GO_ON, START_AGAIN = 0.02, 0.05
"""Shares of the waiting that loading ahead must save: less is noise, and isn't worth what is read in vain."""


class PrefetchTrial:
    """Compares what the last switches would have waited for with loading ahead and without.

    Both arenas see the same switches whether pages are really loaded ahead or not, so that it is found out too when
    loading ahead would pay again.

    Attributes:
        pays: whether to load ahead.
    """

    def __init__(self, rehearsal: Callable[[], Rehearsal]) -> None:
        """Loading ahead pays until it is found not to.

        Args:
            rehearsal: makes an empty arena.
        """
        self._ahead, self._plain = rehearsal(), rehearsal()
        self._saved = self._waited = self._lately = 0.0
        self.pays = True

    def switched(
        self, task: int, dwell: float, uses_at: UsesAt, reuse: npt.NDArray[np.floating] | None, storage: StorageModel
    ) -> None:
        """A switch has come. One to a task that has no room says nothing: it came under another budget.

        Args:
            task: to which.
            dwell: seconds since the one before.
            uses_at: what was expected between the two.
            reuse: expected uses of each task after it, for eviction.
            storage: what reads have cost lately.
        """
        if not self._ahead.has_room_for(task):
            return
        self._ahead.storage = self._plain.storage = storage
        self._ahead.dwell(dwell, uses_at)
        ahead, plain = (arena.switch(task, reuse).seconds for arena in (self._ahead, self._plain))
        self._saved = MEMORY * self._saved + plain - ahead
        self._waited = MEMORY * self._waited + plain
        self._lately = ALERTNESS * self._lately + plain - ahead
        self.pays = self._lately >= 0 and self._saved >= (GO_ON if self.pays else START_AGAIN) * self._waited
