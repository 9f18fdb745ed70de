"""Brings tasks' pages into the arena: asks the block manager for plans and has the pager carry them out."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from weightpager.bundle import PageIndex
from weightpager.errors import BusyError, StoreTimeoutError, SwitchFailedError, WeightpagerError
from weightpager.runtime.ahead import Ahead
from weightpager.runtime.arrivals import Arrivals
from weightpager.runtime.block_manager import BlockManager, Occupancy
from weightpager.runtime.loading import Loading, LoadStats
from weightpager.runtime.memory_controller import MemoryController
from weightpager.runtime.page_check import PageCheck
from weightpager.runtime.pager import Load, Pager, Priority
from weightpager.runtime.prefetch_ledger import PrefetchCounts
from weightpager.runtime.prefetch_planner import PrefetchPlan
from weightpager.runtime.request import Request
from weightpager.runtime.switch_plan import NO_PAGES, Pages, SwitchPlan
from weightpager.store import PageStore


class Residency:
    """The arena's contents.

    Safe to use from several threads: one switch at a time, and a task that is resident is held at once, whatever switch
    is going on. ``_lock`` guards the block manager and is never kept while storage works; ``_turn`` belongs to the one
    whose switch it is.

    Attributes:
        index: of the pages that there are; may be replaced by one that has more.
        blocks: the page table and its policy.
    """

    def __init__(
        self,
        index: PageIndex,
        needs: list[Pages],
        memory: MemoryController,
        pager: Pager,
        store: PageStore,
        patience: float,
        page_numbers: int | None = None,
        residence: int = 0,
    ) -> None:
        """Nothing is loaded yet.

        Args:
            index: of the pages that there are.
            needs: pages of each task, ascending.
            memory: the arena.
            pager: reads into it.
            store: where pages come from; it checks them.
            patience: seconds without any page after which storage is given up.
            page_numbers: how many pages there may ever be; as many as there are if None.
            residence: entries of tasks during which a page that came goes only if nothing else can.
        """
        self.index = index
        self._memory = memory
        self._pager = pager
        self._store = store
        self._patience = patience
        self._lock = threading.Condition()
        self._turn = threading.Lock()
        self._committing = False
        self._waiting: dict[int, list[Arrivals]] = {}  # page -> who waits for it
        numbers, capacity = page_numbers or len(index), memory.arena.capacity
        self.blocks = BlockManager(needs, numbers, memory.slots, capacity, residence)
        self._check = PageCheck(self.blocks, memory.arena, self._lock)
        self._ahead = Ahead(pager, numbers)
        self._version = 0  # of what plans are made from

    def bring_in(self, request: Request) -> tuple[LoadStats, Loading | None]:
        """Hold a task and load what it lacks; what that cost, and what is still on its way if it wasn't waited for.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while another switch was going on; nothing has changed.
            StoreError, PageCorruptError: a load failed while the task being left was whole, and it still is.
            SwitchFailedError: a load failed after ``give_up``.
        """
        if self._hold_if_resident(request):
            return LoadStats(), None
        with self._my_turn(request.deadline):
            with self._lock:
                self._hold(request)
            try:
                return self._load_all(request)
            except BaseException:
                self.let_go(request.task)
                raise

    def let_go(self, task: int, loading: Loading | None = None) -> None:
        """Undo one hold; pages stay until their slots are wanted. What nobody waits for any more isn't read."""
        with self._lock:
            self.blocks.release(task)
            if loading is not None and not self.blocks.is_held(task):
                self._abandon(loading.load, loading.arrivals)
            self._lock.notify_all()

    def evict_unlocked(self) -> int:
        """Empty the arena of all that nobody holds; how many pages went."""
        with self._my_turn(None), self._lock:
            self._lock.wait_for(lambda: not self._ahead, self._patience)
            pages = self.blocks.evictable()
            self._evict(pages)
            return len(pages)

    def resize(self, budget: int) -> None:
        """Use the slots of another budget, evicting what must go.

        Raises:
            BudgetError: tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have slots that must go; nothing has changed.
        """
        with self._my_turn(None), self._lock:
            fewer = self.blocks.slots - self._memory.slots_for(budget)
            if fewer <= 0:
                self._version += 1
                self._memory.resize(budget, restored=self.blocks.restore(-fewer))
                self._lock.notify_all()
                return
            while fewer > self.blocks.free + len(self.blocks.evictable()):
                held = len(self.blocks.locked())
                if fewer > self.blocks.slots - held:
                    raise self._memory.too_small("the tasks in use", held, budget)
                if not self._await_a_read():
                    raise self._hangs()
            self._evict(self.blocks.evictable()[: max(0, fewer - self.blocks.free)])
            self._memory.resize(budget, retired=self.blocks.retire(fewer))

    def snapshot(self, current: int, uses: npt.NDArray[np.floating]) -> tuple[Occupancy, npt.NDArray[np.float64], int]:
        """What plans of loading ahead are made from.

        Args:
            current: the task that ran last; its pages count as locked.
            uses: expected uses of each task [tasks]; of those that came later none are expected.

        Returns:
            What is where, what each page is worth [pages], and the version of both.
        """
        with self._lock:
            every = np.pad(uses, (0, self.blocks.tasks - len(uses)))
            return self.blocks.occupancy(current), self.blocks.worth(every), self._version

    def load_ahead(self, plan: PrefetchPlan, version: int) -> bool:
        """Start to load pages that nobody waits for, unless a switch is going on or the plan is stale.

        Args:
            plan: of a `snapshot`.
            version: of that.
        """
        if not self._turn.acquire(blocking=False):
            return False
        try:
            with self._lock:
                if self._version != version or self._ahead:
                    return False
                self._evict(plan.evict)
                self._begin_ahead(np.sort(plan.load))
                return True
        finally:
            self._turn.release()

    def prefetch(self, request: Request) -> int:
        """Start to load what a task lacks, though nobody waits for it; how many pages. The task isn't held.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while a switch was going on; nothing has changed.
            StoreTimeoutError: reads that hang have slots that are needed; nothing has changed.
        """
        with self._my_turn(request.deadline, take_back=False), self._lock:
            self._check_there(request)
            plan = self._plan(request)
            self._evict(plan.evict)
            if len(plan.prepare):
                self._begin_ahead(plan.prepare)
            return len(plan.prepare)

    def stop_ahead(self) -> None:
        """Don't begin any more of the reads that nobody waits for."""
        with self._lock:
            self.blocks.cancel(self._ahead.stop(but=self._waiting.keys()))
            self._lock.notify_all()

    def await_ahead(self, timeout: float) -> BaseException | None:
        """Wait until no read is left that nobody waits for; why one has failed."""
        with self._lock:
            self._lock.wait_for(lambda: not self._ahead, timeout)
            return self._ahead.error

    @property
    def prefetched(self) -> PrefetchCounts:
        """What loading ahead has brought."""
        with self._lock:
            return self._ahead.ledger.counts

    def damaged(self) -> list[int]:
        """Resident pages whose bytes no longer match their id; others may use the arena meanwhile."""
        return self._check.damaged(self.index)

    def repair(self) -> list[int]:
        """Load damaged pages again, into the slots that they are in; which they were.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be; it stays as it is.
        """
        return self._check.repair(self.index, self._store)

    def close(self) -> None:
        """End loading and close the store, unless a read hangs in it."""
        self.stop_ahead()
        if self._pager.close():
            self._store.close()

    def replace_tasks(self, gone: dict[str, int], needs: list[Pages]) -> list[int]:
        """Tasks leave and others come; the numbers of those that come, for when `index` and store have their pages.

        Args:
            gone: numbers of the tasks that leave, by name.
            needs: pages of those that come, ascending.

        Raises:
            BusyError: a task that should leave is in use; nothing has changed.
        """
        with self._my_turn(None), self._lock:
            held = [name for name, task in gone.items() if self.blocks.is_held(task)]
            if held:
                raise BusyError(f"expected tasks that nobody uses, found in use: {', '.join(held)}; leave them first")
            for task in gone.values():
                self.blocks.remove_task(task)
            return [self.blocks.add_task(need) for need in needs]

    def _hold(self, request: Request) -> None:
        self._check_there(request)
        self.blocks.hold(request.task)
        self._version += 1

    def _check_there(self, request: Request) -> None:
        if self.blocks.is_gone(request.task):
            raise BusyError(f"task {request.name!r} has just left the bundle, or was replaced; ask again")

    def _evict(self, pages: Pages) -> None:
        self._version += 1
        self.blocks.evict(pages)
        self._ahead.ledger.went(pages)

    def _hold_if_resident(self, request: Request) -> bool:
        with self._lock:
            if self._committing or not self.blocks.is_resident(request.task):
                return False
            self._hold(request)
            self._ahead.needed(self.blocks.needs(request.task), NO_PAGES, 0)
            return True

    @contextmanager
    def _my_turn(self, deadline: float | None, *, take_back: bool = True) -> Iterator[None]:
        """For a switch, or what else mustn't meet one; unless told not to, it takes back what is to be loaded ahead."""
        left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not self._turn.acquire(timeout=left):
            raise BusyError("another switch was still going on when the timeout passed; try again, or allow more time")
        try:
            if take_back:
                self.stop_ahead()
            yield
        finally:
            self._turn.release()

    def _load_all(self, request: Request) -> tuple[LoadStats, Loading | None]:
        """First what fits beside the task that is left; then, if that isn't all, the rest in its place."""
        stats = LoadStats()
        while True:
            with self._lock:
                plan = self._plan(request)
                beside = len(plan.prepare) + len(plan.loading)
                self._committing = len(plan.commit) > 0 and not (beside and request.wait)
                loading = None if self._committing else self._start(plan, request)
            if loading is None:
                return self._commit(request, stats)
            if not request.wait:
                return loading.cost(until_now=False), loading
            stats += self._finish(loading)
            if not len(plan.commit):
                return stats, None

    def _plan(self, request: Request) -> SwitchPlan:
        """A plan, as soon as there is room for one; the lock is held.

        Slots of reads in flight are waited for if there is no room without them, or to keep the task that is left.

        Raises:
            BudgetError: tasks in use leave no room, until the deadline.
            StoreTimeoutError: reads that hang do.
        """
        hangs = False
        while True:
            reuse = None if request.reuse is None else request.reuse()
            plan = self.blocks.plan(request.task, request.leaving, reuse)
            if plan is not None and (hangs or not (len(plan.commit) and self._ahead)):
                return plan
            if plan is None and (beside := self._beside(request)) > self.blocks.slots:
                self._await_room(request, beside)
            elif hangs:
                raise self._hangs()
            else:
                hangs = not self._await_a_read()

    def _beside(self, request: Request) -> int:
        """Pages of a task and of those in use, as if the one that is left for it weren't."""
        own = [request.task] if request.leaving is None else [request.task, request.leaving]
        return len(np.union1d(self.blocks.needs(request.task), self.blocks.locked(but_one_hold_of=own)))

    def _await_room(self, request: Request, beside: int) -> None:
        """Until something changes, unless that can't help or the deadline has passed."""
        left = 0.0 if request.deadline is None else request.deadline - time.monotonic()
        if left <= 0 or len(self.blocks.needs(request.task)) > self.blocks.slots:
            raise self._memory.too_small(f"task {request.name!r} beside the tasks in use", beside)
        self._lock.wait(left)

    def _commit(self, request: Request, stats: LoadStats) -> tuple[LoadStats, Loading | None]:
        """Give up the task that is left; until its place is taken, nobody else can hold one."""
        try:
            try:
                request.give_up()
                with self._lock:
                    plan = self._plan(Request(request.task, request.name, reuse=request.reuse))
                    loading = self._start(plan, request)
            finally:
                with self._lock:
                    self._committing = False
            if not request.wait:
                return stats + loading.cost(until_now=False), loading
            return stats + self._finish(loading), None
        except WeightpagerError as error:
            raise SwitchFailedError(f"switching to {request.name!r} failed, no task is active now: {error}") from error

    def _await_a_read(self) -> bool:
        """Wait until a read in flight has ended, whoever wanted it; False if storage hangs. The lock is held."""
        loading = self.blocks.loading
        return self._lock.wait_for(lambda: self.blocks.loading < loading, self._patience)

    def _hangs(self) -> StoreTimeoutError:
        return StoreTimeoutError(
            f"storage has not finished a read for {self._patience:g} s whose memory is needed; "
            "check the device, or raise read_timeout if it is only slow"
        )

    def _start(self, plan: SwitchPlan, request: Request) -> Loading:
        need, misses = self.blocks.needs(request.task), len(plan.prepare)
        self._ahead.needed(need, plan.loading, misses)
        self._evict(plan.evict)
        slots = self.blocks.reserve(plan.prepare)
        pages = [*plan.loading.tolist(), *slots]
        arrivals = Arrivals(pages, self.index.layers, self._patience)
        for page in pages:
            self._waiting.setdefault(page, []).append(arrivals)
        load = self._pager.load(self._store, slots, request.priority, self._ended)
        return Loading(load, arrivals, self._memory.page_bytes)

    def _begin_ahead(self, pages: Pages) -> None:
        slots = self.blocks.reserve(pages)
        self._ahead.begun(self._pager.load(self._store, slots, Priority.PREFETCH, self._ended))

    def _finish(self, loading: Loading) -> LoadStats:
        try:
            loading.arrivals.wait()
        except BaseException:
            with self._lock:
                self._abandon(loading.load, loading.arrivals)
            raise
        return loading.cost(until_now=True)

    def _ended(self, load: Load, pages: Collection[int], error: BaseException | None) -> None:
        """A read has ended: its pages are resident, or their slots free again."""
        with self._lock:
            if error is None:
                self.blocks.publish(pages)
            else:
                self.blocks.cancel(pages)
            self._ahead.ended(pages, error)
            if self._ahead.error is not None:
                self.blocks.cancel(self._ahead.stop(but=self._waiting.keys()))
            waiting = {id(arrivals): arrivals for page in pages for arrivals in self._waiting.pop(page, ())}
            for arrivals in waiting.values():
                if error is None:
                    arrivals.arrived(pages)
                else:
                    arrivals.failed(error)
                    self._abandon(load, arrivals)
            self._lock.notify_all()

    def _abandon(self, load: Load, arrivals: Arrivals) -> None:
        """These are no longer waited for: of the load, what hasn't been begun and nobody else wants isn't read."""
        for page, waiting in list(self._waiting.items()):
            if arrivals in waiting:
                waiting.remove(arrivals)
            if not waiting:
                del self._waiting[page]
        self.blocks.cancel(self._pager.cancel(load, but=self._waiting.keys()))
