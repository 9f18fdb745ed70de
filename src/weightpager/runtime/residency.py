"""Brings a task's pages into the arena: asks the block manager for a plan and has the pager carry it out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import SwitchFailedError, WeightpagerError
from weightpager.runtime.block_manager import BlockManager
from weightpager.runtime.memory_controller import MemoryController
from weightpager.runtime.pager import LoadStats, Pager
from weightpager.runtime.switch_plan import Pages

_NONE: Pages = np.zeros(0, np.int64)


class Residency:
    """The arena's contents, changed one request at a time; the caller holds a lock around every call."""

    def __init__(self, index: PageIndex, memory: MemoryController, pager: Pager) -> None:
        self._index = index
        self._memory = memory
        self._pager = pager
        self.blocks = BlockManager(len(index), memory.slots)

    def bring_in(
        self, task: str, need: Pages, release: Pages = _NONE, give_up: Callable[[], None] = lambda: None
    ) -> LoadStats:
        """Make all of ``need`` resident and lock it.

        Args:
            task: named in errors.
            need: pages of the task, ascending.
            release: pages of the task that is being left.
            give_up: called once at the start of the commit phase, if there is one: it unlocks ``release``.

        Raises:
            BudgetError: the pages can't fit beside those that are locked; nothing has changed.
            StoreError, PageCorruptError: a load failed in the prepare phase; the task being left is whole.
            SwitchFailedError: a load failed in the commit phase, after ``give_up``.
        """
        plan = self.blocks.plan(need, release)
        if plan is None:
            locked = self.blocks.locked(beside=release)
            raise self._memory.too_small(f"task {task!r} beside the tasks in use", len(np.union1d(need, locked)))
        self.blocks.lock(need)
        try:
            self.blocks.evict(plan.evict)
            stats = self._load(plan.prepare)
            if len(plan.commit):
                stats += self._commit(task, plan.release, plan.commit, give_up)
        except BaseException:
            self.blocks.unlock(need)
            raise
        return stats

    def let_go(self, pages: Pages) -> None:
        """Unlock pages; they stay resident until their slots are wanted."""
        self.blocks.unlock(pages)

    def evict_unlocked(self) -> int:
        """Empty the arena of all that nobody holds; how many pages went."""
        pages = self.blocks.evictable()
        self.blocks.evict(pages)
        return len(pages)

    def damaged(self) -> list[int]:
        """Resident pages whose bytes no longer match their id."""
        return [
            int(page)
            for page in self.blocks.resident()
            if blake3(self._memory.slot(int(self.blocks.page_table[page]))).digest() != self._index.ids[page].tobytes()
        ]

    def close(self) -> None:
        """End loading."""
        self._pager.close()

    def _commit(self, task: str, release: Pages, pages: Pages, give_up: Callable[[], None]) -> LoadStats:
        give_up()
        self.blocks.evict(release)
        try:
            return self._load(pages)
        except WeightpagerError as error:
            raise SwitchFailedError(f"switching to {task!r} failed, no task is active now: {error}") from error

    def _load(self, pages: Pages) -> LoadStats:
        if not len(pages):
            return LoadStats()
        try:
            return self._pager.load(self.blocks.reserve(pages), self.blocks.publish)
        finally:
            self.blocks.cancel_reserved()
