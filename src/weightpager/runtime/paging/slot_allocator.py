"""Slots for a task's pages: a plan that finds enough of them, and what is evicted for it."""

from __future__ import annotations

from weightpager.errors import StoreTimeoutError
from weightpager.runtime.paging.reads.failures import closed_while_loading, storage_hangs
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import SwitchRequest
from weightpager.runtime.planning.plans import Pages, SwitchPlan


class SlotAllocator:
    """Plans which slots a task's pages take, and frees them. Waits for those of reads in flight where it must.

    Whoever calls has the turn and holds the lock, which is given up while waiting.
    """

    def __init__(self, state: PagingState) -> None:
        self._state = state
        self._blocks = state.blocks

    def plan(self, request: SwitchRequest) -> SwitchPlan:
        """A plan, as soon as reads in flight leave room for one.

        Their slots are waited for if there is no room without them, or to keep the previous task.

        Raises:
            BudgetError: tasks in use leave no room.
            StoreTimeoutError: reads that hang do.
            EngineClosedError: it has been closed meanwhile.
        """
        hangs = False
        while True:
            if not self.fits(request):
                what = f"task {request.name!r} beside the tasks in use"
                tables = self._table_bytes(request)
                pages = self._blocks.pages_in_use(request.task, request.previous)
                raise self._state.memory.too_small(what, pages, tables=tables)
            plan = self._blocks.plan(request.task, request.previous, request.ask_uses)
            if plan is not None and (hangs or not (plan.needs_commit and self._state.prefetched)):
                return plan
            if hangs:
                raise self.hang_error()
            hangs = not self.await_read()

    def fits(self, request: SwitchRequest) -> bool:
        """Whether tasks in use leave room for pages and tables, if not at once then when reads in flight have ended."""
        most = min(self._blocks.slots, self._state.memory.slots_beside(self._table_bytes(request)))
        return self._blocks.pages_in_use(request.task, request.previous) <= most

    def evict(self, pages: Pages) -> None:
        """Give up resident pages that no held task needs."""
        if not len(pages):
            return
        self._blocks.evict(pages)
        self._state.prefetched.ledger.went(pages)

    def evict_unused(self) -> int:
        """Give up all that no held task needs. Returns the number of pages that went."""
        self._state.news.wait_for(lambda: not self._state.prefetched or self._state.closed, self._state.read_timeout)
        pages = self._blocks.evictable()
        self.evict(pages)
        return len(pages)

    def await_read(self) -> bool:
        """Wait until a read in flight has ended, whoever wanted it. Returns False if storage hangs.

        Raises:
            EngineClosedError: it has been closed, so that nobody can use the slots.
        """
        state, loading = self._state, self._blocks.loading
        ended = state.news.wait_for(lambda: state.closed or self._blocks.loading < loading, state.read_timeout)
        if state.closed:
            raise closed_while_loading()
        return ended

    def hang_error(self) -> StoreTimeoutError:
        """The error where reads that hang have slots which are needed."""
        seconds = self._state.read_timeout
        return storage_hangs(f"storage has not finished a read for {seconds:g} s whose memory is needed")

    def _table_bytes(self, request: SwitchRequest) -> int:
        """Bytes of the expanded block tables of the task and of those in use."""
        cache = self._state.memory.tables
        return 0 if request.tables is None else cache.needed(request.tables, request.previous_tables)
