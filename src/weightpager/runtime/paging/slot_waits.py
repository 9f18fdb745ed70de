"""Slots for pages: what is evicted for them, and which reads are waited for until there are enough."""

from __future__ import annotations

import numpy as np

from weightpager.distinct import distinct
from weightpager.errors import StoreTimeoutError
from weightpager.runtime.paging.reads.failures import storage_hangs
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import SwitchRequest
from weightpager.runtime.planning.plans import Pages, SwitchPlan


class SlotWaits:
    """Frees slots, and waits for those of reads that end.

    Whoever calls has the turn and holds the lock, which is given up while waiting.
    """

    def __init__(self, state: PagingState) -> None:
        self._state = state
        self._blocks = state.blocks

    def plan(self, request: SwitchRequest) -> SwitchPlan:
        """A plan, as soon as reads in flight leave room for one.

        Their slots are waited for if there is no room without them, or to keep the task that is left.

        Raises:
            BudgetError: tasks in use leave no room.
            StoreTimeoutError: reads that hang do.
        """
        hangs = False
        while True:
            plan = self._blocks.plan(request.task, request.leaving, request.reuse)
            if plan is not None and (hangs or not (len(plan.commit) and self._state.prefetched)):
                return plan
            if plan is None and not self.fits(request):
                what = f"task {request.name!r} beside the tasks in use"
                raise self._state.memory.too_small(what, self._beside(request), tables=self._tables(request))
            if hangs:
                raise self._hangs()
            hangs = not self._await_a_read()

    def fits(self, request: SwitchRequest) -> bool:
        """Whether tasks in use leave room, if not at once then when reads in flight have ended."""
        return self._beside(request) <= self._blocks.slots

    def evict(self, pages: Pages) -> None:
        """Give up resident pages that no held task needs."""
        if not len(pages):
            return
        self._blocks.evict(pages)
        self._state.prefetched.ledger.went(pages)

    def evict_unlocked(self) -> int:
        """Give up all that no held task needs; how many pages went."""
        self._state.lock.wait_for(lambda: not self._state.prefetched, self._state.read_timeout)
        pages = self._blocks.evictable()
        self.evict(pages)
        return len(pages)

    def resize(self, budget: int, tables: int | None = None) -> None:
        """Use the slots of another budget, evicting what must go.

        Args:
            budget: bytes.
            tables: bytes of expanded block tables that must have room; those of the tasks in use if None.

        Raises:
            BudgetError: tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have slots that must go; nothing has changed.
        """
        memory = self._state.memory
        before, memory.least_tables = memory.least_tables, memory.tables.in_use if tables is None else tables
        try:
            self._resize(budget)
        except BaseException:
            memory.least_tables = before
            raise

    def restore(self) -> None:
        """Use slots again that made room for block tables of tasks which have left."""
        if self._state.memory.tables_have_grown:
            self.resize(self._state.memory.budget)

    def _resize(self, budget: int) -> None:
        memory = self._state.memory
        fewer = self._blocks.slots - memory.slots_for(budget)
        if fewer <= 0:
            memory.resize(budget, restored=self._blocks.restore(-fewer))
            self._state.lock.notify_all()
            return
        while fewer > self._blocks.free + len(self._blocks.evictable()):
            held = len(self._blocks.locked())
            if fewer > self._blocks.slots - held:
                raise memory.too_small("the tasks in use", held, budget)
            if not self._await_a_read():
                raise self._hangs()
        self.evict(self._blocks.evictable()[: max(0, fewer - self._blocks.free)])
        memory.resize(budget, retired=self._blocks.retire(fewer))

    def _beside(self, request: SwitchRequest) -> int:
        """Pages of a task and of those in use, as if the one that is left for it weren't."""
        own = [request.task] if request.leaving is None else [request.task, request.leaving]
        locked = self._blocks.locked(but_one_hold_of=own)
        return len(distinct(np.concatenate([self._blocks.needs(request.task), locked])))

    def _tables(self, request: SwitchRequest) -> int:
        """Bytes of their expanded block tables."""
        room = self._state.memory.tables
        return 0 if request.tables is None else room.needed(request.tables, request.leaving_tables)

    def _await_a_read(self) -> bool:
        """Wait until a read in flight has ended, whoever wanted it; False if storage hangs."""
        loading = self._blocks.loading
        return self._state.lock.wait_for(lambda: self._blocks.loading < loading, self._state.read_timeout)

    def _hangs(self) -> StoreTimeoutError:
        return storage_hangs(f"not finished a read for {self._state.read_timeout:g} s whose memory is needed")
