"""What a switch asks for, what is on its way for it, and the state that the parts of paging share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from weightpager.bundle import PageIndex
from weightpager.errors import ConfigError, StoreTimeoutError, SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.interrupts import Condition, acquire
from weightpager.runtime.budget import too_small
from weightpager.runtime.memory.memory_budget import MemoryBudget, Tables
from weightpager.runtime.paging.load import Priority, closed_while_loading, storage_hangs
from weightpager.runtime.paging.page_waits import PendingPages, Waiters
from weightpager.runtime.paging.pager import Pager, PrefetchedPages
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import Pages, SwitchPlan, Uses
from weightpager.store import VerifyingStore


@dataclass(frozen=True)
class Deadline:
    """When waiting for other tasks and threads ends.

    Attributes:
        end: by `time.monotonic`; None never.
    """

    end: float | None

    @classmethod
    def after(cls, timeout: float | None) -> Deadline:
        """The end of a timeout that begins now; `NEVER` without one. Raises `ConfigError` if it is no number."""
        if timeout is None:
            return NEVER
        if not timeout >= 0:
            raise ConfigError(f"timeout: expected seconds from 0, or None, got {timeout}")
        return cls(time.monotonic() + timeout)

    def left(self) -> float | None:
        """Seconds until then, as a timeout that `threading` takes; None if it never comes."""
        return None if self.end is None else min(max(0.0, self.end - time.monotonic()), threading.TIMEOUT_MAX)

    def acquire(self, lock: threading.Lock | threading.RLock) -> bool:
        """Acquire a lock until then, as `interrupts.acquire` does. Returns whether that was done."""
        return acquire(lock, self.left())


NEVER = Deadline(None)


@dataclass(frozen=True)
class SwitchRequest:
    """A task that is wanted in the arena.

    Attributes:
        task: its number.
        name: its name, for errors.
        previous: number of the task that is left for it, None if none is.
        give_up: releases the previous task. Called once, if both don't fit together, when that can be kept no longer.
        deadline: when waiting for other tasks to leave or for another switch ends; `NEVER` never waits for a task, and
            as long as it takes for a switch.
        wait: whether to return only when all pages are there.
        priority: the priority of its reads.
        ask_uses: gives the expected uses of each task, for eviction; None goes by recency alone.
        tables: its block tables, expanded while it is held; None if it has none.
        previous_tables: the previous task's block tables.
    """

    task: int
    name: str
    previous: int | None = None
    give_up: Callable[[], None] = lambda: None
    deadline: Deadline = NEVER
    wait: bool = True
    priority: Priority = Priority.ON_DEMAND
    ask_uses: Callable[[], Uses] | None = None
    tables: Tables | None = None
    previous_tables: Tables | None = None

    def after_give_up(self) -> SwitchRequest:
        """The request that remains once the previous task has been given up."""
        return replace(self, previous=None, previous_tables=None)

    def failed(self, error: WeightpagerError) -> SwitchFailedError:
        """The error for a failure after the previous task has been given up."""
        return SwitchFailedError(f"switching to {self.name!r} failed, no task is active now: {error}")


@dataclass(frozen=True)
class LoadStats:
    """What loading cost: reads issued, bytes in them, seconds until the last was checked."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: LoadStats) -> LoadStats:
        return LoadStats(self.reads + other.reads, self.bytes + other.bytes, self.seconds + other.seconds)


@dataclass(frozen=True, eq=False)
class PendingLoad:
    """Pages on their way for one task.

    Attributes:
        reads: reads issued for it.
        bytes: bytes in these reads.
        pages: the pages that it waits for: its own, and those that an earlier load was bringing already.
        start: when it began, by `time.perf_counter`.
    """

    reads: int
    bytes: int
    pages: PendingPages
    start: float = field(default_factory=time.perf_counter)

    def cost(self, *, until_now: bool) -> LoadStats:
        """What its own reads cost, without those of the earlier load."""
        seconds = time.perf_counter() - self.start if until_now and self.reads else 0.0
        return LoadStats(self.reads, self.bytes, seconds)


@dataclass(eq=False)
class PagingState:
    """What is in the arena, what is on its way there, and who waits for it: one state under one lock.

    ``lock`` guards all that can change, and is never kept while storage works. ``news`` is notified whenever a read
    ends, and when there may be room or a task that could not be held may be. Who changes what, with the lock held:

    ===============  =================================================================================================
    `Residency`      holders in ``blocks``, tasks that come and leave, ``changes``, ``closed``; has ``index`` replaced
    `Switch`         ``committing``; pages of a small switch, which come in one step
    `Loads`          other pages that are reserved, come or are cancelled; ``waiters``, ``prefetched``
    `SlotAllocator`  pages that are evicted; slots; ``memory``
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
    """Plans which slots a task's pages take, frees them, and changes how many there are.

    Waits for slots of reads in flight where it must.

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
        memory, tables, most = self._state.memory, self._table_bytes(request), self._blocks.slots
        if tables > memory.split.tables:
            most = min(most, memory.slots_beside(tables))
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

    def resize(self, budget: int, tables: int | None = None, expected_uses: Uses | None = None) -> None:
        """Use the slots of another budget, evicting what must go.

        Args:
            budget: bytes.
            tables: bytes of expanded block tables that must have room; those of the tasks in use if None.
            expected_uses: of each task; what will be used least goes first. None goes by recency alone.

        Raises:
            BudgetError: tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have slots that must go; nothing has changed.
            EngineClosedError: it was closed while slots were waited for; nothing has changed.
        """
        memory = self._state.memory
        wanted = memory.tables.in_use if tables is None else tables
        fewer = self._blocks.slots - memory.split_for(budget, wanted).slots
        if fewer > 0:
            self._await_slots(fewer, budget, wanted)
            slots, pages = self._blocks.to_retire(fewer, expected_uses)
            self.evict(pages)
            self._blocks.retire(slots)
            memory.resize(budget, wanted, retired=slots)
        else:
            memory.resize(budget, wanted, restored=self._blocks.restore(-fewer))
            self._state.news.notify_all()

    def restore(self) -> None:
        """Use slots again that made room for block tables of tasks which have left."""
        if self._state.memory.has_spare_table_room:
            self.resize(self._state.memory.budget)

    def _await_slots(self, count: int, budget: int, tables: int) -> None:
        """Wait until reads in flight let so many slots go. Errors are those of `resize`."""
        while count > self._blocks.free + len(self._blocks.evictable()):
            held = len(self._blocks.locked())
            if count > self._blocks.slots - held:
                raise too_small(self._state.memory.needs, "the tasks in use", held, budget, tables=tables)
            if not self.await_read():
                raise self.hang_error()

    def _table_bytes(self, request: SwitchRequest) -> int:
        """Bytes of the expanded block tables of the task and of those in use."""
        cache = self._state.memory.tables
        return 0 if request.tables is None else cache.needed(request.tables, request.previous_tables)


class Loads:
    """Has the pager load pages, makes them resident as they come, and tells whoever waits for them."""

    def __init__(self, state: PagingState, slots: SlotAllocator) -> None:
        self._state = state
        self._lock = state.lock
        self._slots = slots
        self._unawaited: dict[int, Sequence[PendingLoad]] = {}  # of each held task, loads that nobody has waited for

    def start(self, plan: SwitchPlan, request: SwitchRequest) -> PendingLoad:
        """Begin to load what the prepare phase of a plan brings. The lock is held. Raises `EngineClosedError`."""
        state = self._state
        if state.closed:
            raise closed_while_loading()
        state.prefetched.needed(state.blocks.needs(request.task), plan.loading, len(plan.prepare))
        self._slots.evict(plan.evict)
        before = state.blocks.reserved().tolist()
        slots = state.blocks.reserve(plan.prepare)
        pages = [*plan.loading.tolist(), *plan.prepare.tolist()]
        pending = PendingPages(pages, state.index.layers, state.read_timeout, before)
        reads = state.pager.load(state.store, plan.prepare, slots, request.priority, self._on_read_end)
        state.waiters.add(pending)
        load = PendingLoad(reads, len(plan.prepare) * state.memory.arena.page_bytes, pending)
        if not request.wait:
            earlier = [other for other in self._unawaited.get(request.task, ()) if not other.pages.complete]
            self._unawaited[request.task] = [*earlier, load]
        return load

    def finish(self, load: PendingLoad) -> LoadStats:
        """Wait for all pages of a load. Errors are those of `PendingPages.wait`."""
        try:
            load.pages.wait()
        except BaseException:
            with self._lock:
                self._give_up(load)
                self._cancel_unwanted()
            raise
        return load.cost(until_now=True)

    def abandon(self, task: int) -> None:
        """Cancel what was to be read for a task that nobody holds any more, and for nobody else. The lock is held."""
        loads = self._unawaited.pop(task, ())
        for load in loads:
            self._give_up(load)
        if loads:
            self._cancel_unwanted()

    def prefetch(self, pages: Pages) -> None:
        """Begin to load absent pages, ascending, that nobody waits for. The lock is held."""
        slots = self._state.blocks.reserve(pages)
        self._state.pager.load(self._state.store, pages, slots, Priority.PREFETCH, self._on_read_end)
        self._state.prefetched.begun(pages.tolist())

    def stop_prefetch(self) -> None:
        """Don't begin any more of the reads that nobody waits for. The lock is held."""
        self._cancel(but=self._state.waiters.pages)

    def close(self) -> None:
        """Have whoever waits know that no more pages will come, and don't begin any more reads. The lock is held."""
        self._state.waiters.fail(closed_while_loading())
        self._cancel(but=())

    def cancel_lost(self) -> None:
        """Free slots that were reserved for reads which could not be submitted, as where no thread can be started.

        The lock is held, and the pager isn't closed.
        """
        reserved = self._state.blocks.reserved().tolist()
        if reserved:
            self._forget(set(reserved) - self._state.pager.pages)

    def _give_up(self, load: PendingLoad) -> None:
        self._state.waiters.remove(load.pages)
        if not load.pages.complete:
            load.pages.failed(TaskNotActiveError("the task was left before its pages had come"))

    def _cancel_unwanted(self) -> None:
        """Don't begin reads of pages that nobody waits for and nobody prefetches, whichever load they belong to."""
        self._cancel(but={*self._state.waiters.pages, *self._state.prefetched.pages})

    def _cancel(self, but: Collection[int]) -> None:
        self._forget(self._state.pager.cancel(but))

    def _forget(self, pages: Collection[int]) -> None:
        if not pages:
            return
        self._state.prefetched.cancelled(pages)
        self._state.blocks.cancel(pages)

    def _on_read_end(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read has ended: its pages are resident, or their slots free again."""
        state = self._state
        with self._lock:
            if error is None:
                state.blocks.publish(pages)
            else:
                reserved = set(state.blocks.reserved().tolist())  # not those that were told as come just before
                state.blocks.cancel([page for page in pages if page in reserved])
            state.prefetched.on_read_end(pages, error)
            if state.prefetched.error is not None:
                self.stop_prefetch()
            for pending in state.waiters.waiting_for(pages):
                if error is None:
                    pending.arrived(pages)
                else:
                    pending.failed(error)
                    state.waiters.remove(pending)
            if error is None:
                state.waiters.passed(pages)
            else:
                self._cancel_unwanted()
            self._state.news.notify_all()
