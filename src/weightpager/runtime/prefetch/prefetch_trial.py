"""Whether prefetching pays: what the last switches would have waited for with it, and without."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.pages import Uses
from weightpager.runtime.prefetch.virtual_arena import UsesAt, VirtualArena
from weightpager.store import StorageModel

MEMORY, ALERTNESS = 0.97, 0.9
"""A factor per switch on what earlier ones count: about thirty switches decide, and the latest ten can stop it."""

GO_ON, START_AGAIN = 0.02, 0.05
"""Shares of the waiting that prefetch must save. Less is noise, and isn't worth what is read in vain."""


class Savings:
    """What prefetching would have saved of the last switches' waits, in one arena or in several.

    Attributes:
        pay: whether that is worth what prefetching costs. It is until it is found not to be.
    """

    def __init__(self) -> None:
        self._saved = self._waited = self._lately = 0.0
        self.pay = True

    def count(self, plain: float, prefetching: float) -> None:
        """A switch would have waited for so many seconds without prefetching, and with it."""
        self._saved = MEMORY * self._saved + plain - prefetching
        self._waited = MEMORY * self._waited + plain
        self._lately = ALERTNESS * self._lately + plain - prefetching
        self.pay = self._lately >= 0 and self._saved >= (GO_ON if self.pay else START_AGAIN) * self._waited


class PrefetchTrial:
    """Compares what switches would have waited for with prefetching and without.

    Both arenas see every switch, also while nothing is really prefetched, so that they tell when it would pay again.
    """

    def __init__(self, arena: Callable[[], VirtualArena], savings: Savings | None = None) -> None:
        """Count what would have been saved with that of other arenas; alone without ``savings``."""
        self._savings = savings or Savings()
        self._new = self._made_by = arena
        self._arenas = arena(), arena()  # with prefetching, and without

    @property
    def pays(self) -> bool:
        """Whether to prefetch."""
        return self._savings.pay

    def move(self, arena: Callable[[], VirtualArena]) -> None:
        """Go on with other arenas, as when the budget has changed. What was saved so far counts on. Takes no time."""
        self._new = arena

    def _both(self) -> tuple[VirtualArena, VirtualArena]:
        new = self._new  # another thread may have it move meanwhile
        if new is not self._made_by:
            self._made_by, self._arenas = new, (new(), new())
        return self._arenas

    def dwell(self, seconds: float, uses_at: UsesAt, storage: StorageModel) -> None:
        """So many seconds have passed since the latest switch of any arena.

        Args:
            seconds: how many.
            uses_at: what was expected meanwhile.
            storage: what reads have cost lately.
        """
        prefetching, plain = self._both()
        prefetching.storage = plain.storage = storage
        prefetching.dwell(seconds, uses_at)

    def learn(
        self,
        task: int | None,
        dwell: float,
        uses_at: UsesAt,
        own: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
        uses_after: npt.NDArray[np.float64],
        storage: StorageModel,
    ) -> None:
        """A task was asked for, None of another arena, so many seconds after the one before.

        ``own`` takes the uses of this arena's tasks out of those of all.
        """

        def own_at(elapsed: float) -> npt.NDArray[np.float64] | None:
            uses = uses_at(elapsed)
            return None if uses is None else own(uses)

        self.dwell(dwell, own_at, storage)
        if task is None:
            self.leave()
        else:
            self.switch(task, own(uses_after))

    def leave(self) -> None:
        """A task of another arena runs now."""
        for arena in self._both():
            arena.leave()

    def switch(self, task: int, expected_uses: Uses | None) -> None:
        """A task is asked for. One that doesn't fit is left out: it came under another budget.

        Args:
            task: its number.
            expected_uses: of each task after it, for eviction.
        """
        arenas = self._both()
        if not arenas[0].has_room_for(task):
            return
        prefetching, plain = (arena.switch(task, expected_uses).seconds for arena in arenas)
        self._savings.count(plain, prefetching)
