"""Whether prefetching pays: two arenas in virtual time, one that prefetches and one that doesn't."""

from __future__ import annotations

from collections.abc import Callable

from weightpager.runtime.planning.plans import Uses
from weightpager.runtime.prefetch.virtual_arena import UsesAt, VirtualArena
from weightpager.store import StorageModel

MEMORY, ALERTNESS = 0.97, 0.9
"""A factor per switch on what earlier ones count: about thirty switches decide, and the latest ten can stop it."""

GO_ON, START_AGAIN = 0.02, 0.05
"""Shares of the waiting that prefetch must save. Less is noise, and isn't worth what is read in vain."""


class PrefetchTrial:
    """Compares what the last switches would have waited for with prefetching and without.

    Both arenas see every switch, also while nothing is really prefetched, so that they tell when it would pay again.

    Attributes:
        pays: whether to prefetch.
    """

    def __init__(self, arena: Callable[[], VirtualArena]) -> None:
        """Prefetching pays until it is found not to.

        Args:
            arena: makes an empty arena.
        """
        self._prefetching, self._plain = arena(), arena()
        self._saved = self._waited = self._lately = 0.0
        self.pays = True

    def switched(
        self, task: int, dwell: float, uses_at: UsesAt, expected_uses: Uses | None, storage: StorageModel
    ) -> None:
        """A switch has come. One to a task that doesn't fit is left out: it came under another budget.

        Args:
            task: to which.
            dwell: seconds since the one before.
            uses_at: what was expected between the two.
            expected_uses: of each task after it, for eviction.
            storage: what reads have cost lately.
        """
        if not self._prefetching.has_room_for(task):
            return
        self._prefetching.storage = self._plain.storage = storage
        self._prefetching.dwell(dwell, uses_at)
        prefetching, plain = (arena.switch(task, expected_uses).seconds for arena in (self._prefetching, self._plain))
        self._saved = MEMORY * self._saved + plain - prefetching
        self._waited = MEMORY * self._waited + plain
        self._lately = ALERTNESS * self._lately + plain - prefetching
        self.pays = self._lately >= 0 and self._saved >= (GO_ON if self.pays else START_AGAIN) * self._waited
