"""What the parts of paging share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np

from weightpager.bundle import PageIndex
from weightpager.errors import StoreTimeoutError
from weightpager.interrupts import Condition
from weightpager.runtime.memory.memory_budget import MemoryBudget
from weightpager.runtime.paging.load import closed_while_loading, storage_hangs
from weightpager.runtime.paging.page_waits import Waiters
from weightpager.runtime.paging.pager import Pager, PrefetchedPages
from weightpager.runtime.paging.switch_request import SwitchRequest
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.plans import Pages, SwitchPlan
from weightpager.store import VerifyingStore


@dataclass(eq=False)
class PagingState:
    """What is in the arena, what is on its way there, and who waits for it: one state under one lock.

    ``lock`` guards all that can change, and is never kept while storage works. ``news`` is notified whenever a read
    ends, and when there may be room or a task that could not be held may be. Who changes what, with the lock held:

    ===============  =================================================================================================
    `Residency`      holders in ``blocks``, tasks that come and leave, ``changes``, ``closed``; has ``index`` replaced
    `Switch`         ``committing``; pages of a small switch, which come in one step
    `Loads`          other pages that are reserved, come or are cancelled; ``waiters``, ``prefetched``
    `SlotAllocator`  pages that are evicted
    `ArenaResizer`   slots; ``memory``
    `PageCheck`      bytes in the arena of pages that are resident; ``reading``
    ===============  =================================================================================================

    Attributes:
        blocks: the page table and its policy.
        prefetched: pages on their way that nobody waits for.
        memory: the budget and the arena.
        index: ids and layers of all pages; a reload of the bundle replaces it. A number names another page after that
            only if its page was not in ``busy`` and nobody needed it any more.
        pager: reads pages; like the store it is safe to use without the lock.
        store: the store that pages come from, which checks them.
        read_timeout: seconds without any page after which storage is given up.
        waiters: who waits for which page.
        reading: pages that are read though no slot is reserved for them: for a repair, or by reads that hang.
        committing: True from the moment the previous task is given up until the new task has its slots. Meanwhile
            nobody may hold a task.
        changes: how often something happened that may have made room for a task that had none.
        closed: whether nothing may be held any more.
        lock: guards these. Who changes them in the main thread is `uninterrupted`.
        news: its condition.
    """

    blocks: BlockManager
    prefetched: PrefetchedPages
    memory: MemoryBudget
    index: PageIndex
    pager: Pager
    store: VerifyingStore
    read_timeout: float
    waiters: Waiters = field(default_factory=Waiters)
    reading: list[int] = field(default_factory=list)
    committing: bool = False
    changes: int = 0
    closed: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    news: Condition = field(init=False)

    def __post_init__(self) -> None:
        self.news = Condition(self.lock)

    @property
    def busy(self) -> Pages:
        """Pages that are being read, ascending. Their numbers and files must stay as they are. The lock is held."""
        return np.union1d(self.blocks.reserved(), np.array(self.reading, np.int64))

    def changed(self) -> None:
        """Tell whoever waits for room that there may be some. The lock is held."""
        self.changes += 1
        self.news.notify_all()

    def end_commit(self) -> None:
        """Let others hold tasks again: the commit phase is over, or it failed just before it."""
        with self.lock:
            self.committing = False
            self.news.notify_all()


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
