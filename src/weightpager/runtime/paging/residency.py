"""The arena's contents: who holds which task, and whose turn it is to change what is there."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from weightpager.bundle import PageIndex
from weightpager.errors import BudgetError, BusyError, EngineClosedError
from weightpager.runtime.memory.budget import MemoryController
from weightpager.runtime.paging.loader import Loader
from weightpager.runtime.paging.loading import Loading, LoadStats
from weightpager.runtime.paging.page_check import PageCheck
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.paging.prefetched_pages import Ahead
from weightpager.runtime.paging.slot_waits import Room
from weightpager.runtime.paging.switch_request import Request, seconds_until
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.occupancy import Occupancy
from weightpager.runtime.planning.prefetch_counts import PrefetchCounts
from weightpager.runtime.planning.prefetch_planner import PrefetchPlan
from weightpager.runtime.planning.switch_plan import NO_PAGES, Pages
from weightpager.store import PageStore


class Residency:
    """The arena's contents.

    Safe to use from several threads: one switch at a time, and a task that is resident is held at once, whatever switch
    is going on. ``_lock`` guards the block manager and what `Room` and `Loader` keep, and is never kept while storage
    works; ``_turn`` belongs to the one whose switch it is.

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
        self._pager = pager
        self._store = store
        self._lock = threading.Condition()
        self._turn = threading.Lock()
        self._changes = 0  # that may have made room for a task that had none
        self._closed = False
        self._loadings: dict[int, Sequence[Loading]] = {}  # of each held task, what nobody has waited for
        numbers = page_numbers or len(index)
        self.blocks = BlockManager(needs, numbers, memory.slots, memory.arena.capacity, residence)
        self._ahead = Ahead(numbers)
        self._room = Room(self.blocks, memory, self._ahead, self._lock, patience)
        self._loader = Loader(
            self.blocks, self._room, self._ahead, pager, store, self._lock, patience, memory.page_bytes
        )
        self._check = PageCheck(self.blocks, memory.arena, self._lock)

    def bring_in(self, request: Request) -> tuple[LoadStats, Loading | None]:
        """Hold a task and load what it lacks; what that cost, and what is still on its way if it wasn't waited for.

        Where tasks in use leave no room it waits, until the deadline, and others may switch meanwhile.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while another switch was going on; nothing has changed.
            StoreError, PageCorruptError: a load failed while the task being left was whole, and it still is.
            SwitchFailedError: a load failed after ``give_up``.
            EngineClosedError: it has been closed.
        """
        if self._hold_if_resident(request):
            return LoadStats(), None
        while True:
            changes = self._changes
            try:
                return self._switch(request)
            except BudgetError:
                if not self._await_room(request, changes):
                    raise

    def let_go(self, task: int) -> None:
        """Undo one hold; pages stay until their slots are wanted. What nobody waits for any more isn't read."""
        with self._lock:
            self._release(task)
            self._changed()

    def evict_unlocked(self) -> int:
        """Empty the arena of all that nobody holds; how many pages went."""
        with self._my_turn(None), self._lock:
            return self._room.evict_unlocked()

    def resize(self, budget: int) -> None:
        """Use the slots of another budget, evicting what must go.

        Raises:
            BudgetError: tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have slots that must go; nothing has changed.
        """
        with self._my_turn(None), self._lock:
            self._room.resize(budget)
            self._changed()

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
            return self.blocks.occupancy(current), self.blocks.worth(every), self.blocks.version

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
                if self.blocks.version != version or self._ahead:
                    return False
                self._room.evict(plan.evict)
                self._loader.load_ahead(np.sort(plan.load))
                return True
        finally:
            self._turn.release()

    def prefetch(self, request: Request) -> int:
        """Start to load what a task lacks, though nobody waits for it; how many pages. The task isn't held.

        Where what is to be loaded ahead for others leaves no room, it is taken back as far as it hasn't begun.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while a switch was going on; nothing has changed.
            StoreTimeoutError: reads that hang have slots that are needed; others may have lost what was to come.
        """
        with self._my_turn(request.deadline, take_back=False), self._lock:
            self._check_there(request)
            if self.blocks.plan(request.task) is None and self._room.fits(request):
                self.stop_ahead()  # else whoever wants to switch would wait until all of it has come, to go at once
            plan = self._room.plan(request)
            self._room.evict(plan.evict)
            if len(plan.prepare):
                self._loader.load_ahead(plan.prepare)
            return len(plan.prepare)

    def stop_ahead(self) -> None:
        """Don't begin any more of the reads that nobody waits for."""
        with self._lock:
            self._loader.stop_ahead()
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
        """End loading and waiting, and close the store, unless a read hangs in it."""
        with self._lock:
            self._closed = True
            self._changed()
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
            self.check_unused(gone)
            for task in gone.values():
                self.blocks.remove_task(task)
            self._changed()
            return [self.blocks.add_task(need) for need in needs]

    def check_unused(self, tasks: dict[str, int]) -> None:
        """Whether tasks could leave now.

        Args:
            tasks: numbers by name.

        Raises:
            BusyError: one is in use.
        """
        with self._lock:
            held = [name for name, task in tasks.items() if self.blocks.is_held(task)]
        if held:
            raise BusyError(f"expected tasks that nobody uses, found in use: {', '.join(held)}; leave them first")

    def _switch(self, request: Request) -> tuple[LoadStats, Loading | None]:
        with self._my_turn(request.deadline):
            with self._lock:
                self._hold(request)
            try:
                stats, loading = self._loader.bring_in(request, self.index.layers)
                if loading is not None:
                    with self._lock:
                        others = [of for of in self._loadings.get(request.task, ()) if not of.arrivals.complete]
                        self._loadings[request.task] = [*others, loading]
            except BaseException:
                with self._lock:
                    self._release(request.task)  # no news for who waits for room: it was held in this turn only
                raise
            return stats, loading

    def _await_room(self, request: Request, changes: int) -> bool:
        """Wait until there may be room for a task that had none before these changes; False if that can't be."""
        with self._lock:
            left = seconds_until(request.deadline)
            if not left or len(self.blocks.needs(request.task)) > self.blocks.slots:
                return False
            return self._lock.wait_for(lambda: self._changes != changes, left)

    def _changed(self) -> None:
        """There may be room now. The lock is held."""
        self._changes += 1
        self._lock.notify_all()

    def _release(self, task: int) -> None:
        self.blocks.release(task)
        if not self.blocks.is_held(task):
            self._loader.abandon(self._loadings.pop(task, ()))

    def _hold(self, request: Request) -> None:
        if self._closed:
            raise EngineClosedError("the engine has been closed; open the bundle again")
        self._check_there(request)
        self.blocks.hold(request.task)

    def _check_there(self, request: Request) -> None:
        if self.blocks.is_gone(request.task):
            raise BusyError(f"task {request.name!r} has just left the bundle, or was replaced; ask again")

    def _hold_if_resident(self, request: Request) -> bool:
        with self._lock:
            self._lock.wait_for(lambda: not self._loader.committing, seconds_until(request.deadline))
            if self._loader.committing or not self.blocks.is_resident(request.task):
                return False
            self._hold(request)
            self._ahead.needed(self.blocks.needs(request.task), NO_PAGES, 0)
            return True

    @contextmanager
    def _my_turn(self, deadline: float | None, *, take_back: bool = True) -> Iterator[None]:
        """For a switch, or what else mustn't meet one; unless told not to, it takes back what is to be loaded ahead."""
        left = seconds_until(deadline)
        if not self._turn.acquire(timeout=-1 if left is None else left):
            raise BusyError("another switch was still going on when the timeout passed; try again, or allow more time")
        try:
            if take_back:
                self.stop_ahead()
            with self._lock:
                if not self._closed:
                    self._loader.cancel_lost()
            yield
        finally:
            self._turn.release()
