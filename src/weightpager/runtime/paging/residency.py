"""Who holds which task, and whose turn it is to change what is in the arena."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from weightpager.bundle import PageIndex
from weightpager.errors import BudgetError, BusyError, SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.interrupts import uninterrupted
from weightpager.runtime.memory.memory_budget import Tables
from weightpager.runtime.paging.load import engine_closed
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.paging.state import (
    NEVER,
    Deadline,
    Loads,
    LoadStats,
    PagingState,
    PendingLoad,
    SlotAllocator,
    SwitchRequest,
)
from weightpager.runtime.paging.switch import Switch
from weightpager.runtime.planning.pages import NO_PAGES, Occupancy, Pages, PrefetchCounts, Uses
from weightpager.runtime.planning.prefetch_planner import PrefetchPlan

_LOOK_AGAIN = 0.0005
"""Seconds between two looks whether layers are still inside."""


class TaskGate:
    """Counts who holds a task active, and knows which readers are at its pages.

    The engine holds a gate; the task's layers enter it. The last `release` returns only when no reader is inside, and
    pages are given up only after that. So no page goes while a layer reads it.

    Attributes:
        note_read: called when a layer has launched what reads its pages.
        leave: has a reader inside no more; called with it in the ``finally`` of the ``try`` that it entered in, whether
            it was inside or not. It is one call of native code: Ctrl-C can't come before it is done.
    """

    def __init__(self, task: str, note_read: Callable[[], None] = lambda: None) -> None:
        """Nobody holds the task."""
        self._task = task
        self.note_read = note_read
        self._lock = threading.Lock()  # of the holders
        self._holders = 0
        self._readers: set[object] = set()
        self.leave: Callable[[object], None] = self._readers.discard
        self._pending: PendingPages | None = None

    @property
    def holders(self) -> int:
        return self._holders

    @property
    def is_ready(self) -> bool:
        return self._pending is None or self._pending.complete

    @property
    def has_failed(self) -> bool:
        """Whether a page that layers wait for has failed to load."""
        return self._pending is not None and self._pending.error is not None

    def hold(self, pending: PendingPages | None = None) -> None:
        """The task is in place, or its last pages are on their way: let layers in as theirs arrive.

        A load that has failed doesn't count where somebody else has the task in place.
        """
        with self._lock:
            if pending is None or pending.error is None or not self._holders:
                self._pending = pending
            self._holders += 1

    @uninterrupted
    def release(self) -> None:
        """Undo one `hold`. The last one waits for the layers that are reading, whatever signal handlers raise.

        The handlers run afterwards, also where a layer of another thread computes for long.
        """
        with self._lock:
            self._holders -= 1
        while not self._holders and self._readers:
            time.sleep(_LOOK_AGAIN)  # readers leave without a word

    def enter(self, reader: object, layer: int) -> None:
        """A layer starts to read, as soon as its pages are there.

        Args:
            reader: what stands for it, and for nobody else who is inside.
            layer: the model layer whose pages it reads.

        Raises:
            TaskNotActiveError: nobody holds the task active.
            SwitchFailedError: a page of the task can't be loaded.
        """
        arrived: PendingPages | None = None
        while True:
            self._readers.add(reader)  # first: whoever releases the task afterwards waits
            self._check_active()
            pending = self._pending
            if pending is None or pending is arrived:
                return
            self._readers.discard(reader)  # leaving the task must not wait for who waits for a page
            self._wait_for(layer, pending)  # meanwhile the task may be left, and entered again
            arrived = pending

    def _wait_for(self, layer: int, pending: PendingPages) -> None:
        try:
            pending.wait_for(layer)
        except WeightpagerError as error:
            self._check_active()
            if self._pending is pending:  # else the task was entered anew
                raise SwitchFailedError(
                    f"a page of task {self._task!r} could not be loaded while it ran; activate it again: {error}"
                ) from error

    def _check_active(self) -> None:
        if self._holders == 0:
            raise TaskNotActiveError(
                f"task {self._task!r} is not active, its pages may be gone; "
                f"run it inside 'with engine.task({self._task!r})' or after 'engine.activate({self._task!r})'; the "
                "engine must be open"
            )


class Residency:
    """Holds tasks in the arena, and loads what they lack.

    Safe to use from several threads: one switch at a time, and a task that is resident is held at once, whatever switch
    is going on. ``_turn`` belongs to the one whose switch it is, and is kept while storage works; `PagingState.lock`
    isn't.

    Attributes:
        blocks: the page table and its policy.
    """

    def __init__(self, state: PagingState) -> None:
        self._state = state
        self._lock = state.lock
        self._turn = threading.Lock()
        self._slots = SlotAllocator(state)
        self._loads = Loads(state, self._slots)
        self.blocks = state.blocks

    def hold(self, request: SwitchRequest) -> tuple[LoadStats, PendingLoad | None]:
        """Hold a task and load what it lacks.

        Where tasks in use leave no room it waits, until the deadline, and others may switch meanwhile. Returns what
        the load cost, and what is still on its way if it wasn't waited for.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while another switch was going on; nothing has changed.
            StoreError, PageCorruptError: a load failed while the previous task was whole, and it still is.
            SwitchFailedError: a load failed after ``give_up``.
            EngineClosedError: it has been closed.
        """
        if self._hold_if_resident(request):
            return LoadStats(), None
        while True:
            changes = self._state.changes
            try:
                return self._switch(request)
            except BudgetError:
                if not self._await_room(request, changes):
                    raise

    def release(self, task: int, tables: Tables | None = None) -> None:
        """Undo one hold, of a task's expanded block tables too.

        Pages stay until their slots are wanted, tables until their room is. What nobody waits for any more isn't read.
        """
        with self._lock:
            if tables is not None:
                self._state.memory.tables.release(tables)
            self._release_blocks(task)
            self._state.changed()

    @uninterrupted
    def evict_unused(self) -> int:
        """Empty the arena of all that nobody holds. Returns the number of pages that went."""
        with self._my_turn(NEVER), self._lock:
            return self._slots.evict_unused()

    @uninterrupted
    def resize(self, budget: int, expected_uses: Uses | None = None) -> None:
        """Use the slots of another budget. What must go, and errors, are as of `SlotAllocator.resize`."""
        with self._my_turn(NEVER), self._lock:
            self._slots.resize(budget, expected_uses=expected_uses)
            self._state.changed()

    def snapshot(self, current: int | None, expected_uses: Uses) -> tuple[Occupancy, npt.NDArray[np.float64], int]:
        """What prefetches are planned from.

        Args:
            current: the task that ran last, whose pages count as locked; None for one that isn't its own.
            expected_uses: of each task [tasks]; of those that came later none are expected.

        Returns:
            What is where, what each page is worth [pages], and the version of both.
        """
        with self._lock:
            every = np.pad(expected_uses, (0, self.blocks.tasks - len(expected_uses)))
            return self.blocks.occupancy(current), self.blocks.worth(every), self.blocks.version

    @uninterrupted
    def start_prefetch(self, plan: PrefetchPlan, version: int) -> bool:
        """Start to load pages that nobody waits for, unless a switch is going on or the plan is stale."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            with self._lock:
                if self.blocks.version != version or self._state.prefetched or self._state.closed:
                    return False
                self._slots.evict(plan.evict)
                self._loads.prefetch(np.sort(plan.load))
                return True
        finally:
            self._turn.release()

    @uninterrupted
    def prefetch(self, request: SwitchRequest) -> int:
        """Start to load what a task lacks, though nobody waits for it. The task isn't held.

        Where prefetches for others leave no room, they are cancelled as far as they haven't begun. Returns the number
        of pages.

        Raises:
            BudgetError: the pages can't fit beside those of tasks in use; nothing has changed.
            BusyError: the deadline passed while a switch was going on; nothing has changed.
            StoreTimeoutError: reads that hang have slots that are needed; prefetches for others may be cancelled.
        """
        with self._my_turn(request.deadline, stop_prefetch=False), self._lock:
            self._check_there(request)
            if self.blocks.plan(request.task) is None and self._slots.fits(request):
                self.stop_prefetch()  # else whoever wants to switch would wait until all of it has come, to go at once
            plan = self._slots.plan(request)
            self._slots.evict(plan.evict)
            if len(plan.prepare):
                self._loads.prefetch(plan.prepare)
            return len(plan.prepare)

    @uninterrupted
    def stop_prefetch(self) -> None:
        """Don't begin any more of the reads that nobody waits for."""
        with self._lock:
            self._loads.stop_prefetch()
            self._state.news.notify_all()

    @uninterrupted
    def await_prefetch(self, timeout: float) -> BaseException | None:
        """Wait until every prefetch has ended, or it's closed. Returns why the latest has failed, None if it hasn't."""
        with self._lock:
            self._state.news.wait_for(lambda: not self._state.prefetched or self._state.closed, timeout)
            return self._state.prefetched.error

    @property
    def prefetched(self) -> PrefetchCounts:
        with self._lock:
            return self._state.prefetched.ledger.counts

    @uninterrupted
    def close(self) -> None:
        """End loading and waiting, and close the store, unless a read hangs in it.

        Whoever waits for a load is told at once: a read in flight may hang. It keeps its slots, and its memory, until
        it ends.
        """
        with self._lock:
            self._state.closed = True
            self._loads.close()
            self._state.changed()
        if self._state.pager.close():
            self._state.store.close()

    @uninterrupted
    def replace_tasks(
        self, gone: dict[str, int], needs: list[Pages], pages: Pages, take_over: Callable[[Pages, Pages], PageIndex]
    ) -> list[int]:
        """Remove tasks and add others. Pages that no task needs any more are evicted. Returns the new tasks' numbers.

        Args:
            gone: numbers of the tasks that leave, by name.
            needs: pages of those that come, ascending.
            pages: all pages that the bundle has now; those of tasks that stay needn't be among them.
            take_over: is told which pages are kept, and which of them are being read and stay where they are. It has
                all others name no page, has ``pages`` read by the store, and returns their index. Called with the lock
                held and no switch going on, before a task comes or leaves.

        Raises:
            BusyError: a task that should leave is in use; nothing has changed.
        """
        with self._my_turn(NEVER), self._lock:
            self.check_unused(gone)
            busy = self._state.busy
            kept = np.union1d(self._needed_beside(gone.values(), pages), busy)
            self._slots.evict(np.setdiff1d(self.blocks.resident(), kept, assume_unique=True))
            self.blocks.keep_numbers(kept)
            self._state.store.index = self._state.index = take_over(kept, busy)
            for task in gone.values():
                self.blocks.remove_task(task)
            self._state.changed()
            return [self.blocks.add_task(need) for need in needs]

    def _needed_beside(self, gone: Collection[int], pages: Pages) -> Pages:
        """These pages, and all that tasks need which don't leave: those that equal others are the bundle's twice."""
        stay = [task for task in range(self.blocks.tasks) if task not in gone]
        return np.unique(np.concatenate([pages, *(self.blocks.needs(task) for task in stay)]))

    @property
    def differential_pages(self) -> float:
        """What a task needs that another one lacks, in pages: the mean over all ordered pairs of tasks."""
        with self._lock:
            return self.blocks.differential_pages

    def check_unused(self, tasks: dict[str, int]) -> None:
        """Check that nobody uses these tasks.

        Raises:
            BusyError: one is in use.
        """
        with self._lock:
            held = [name for name, task in tasks.items() if self.blocks.is_held(task)]
        if held:
            raise BusyError(f"expected tasks that nobody uses, found in use: {', '.join(held)}; leave them first")

    def _switch(self, request: SwitchRequest) -> tuple[LoadStats, PendingLoad | None]:
        """Hold a task and load what it lacks, as soon as it is this request's turn."""
        with self._my_turn(request.deadline):
            with self._lock:
                self._slots.restore()
                self._hold_blocks(request)
            switch = Switch(self._state, self._slots, self._loads, request)
            try:
                loaded = switch.carry_out()
                switch.hold_tables()
                return loaded
            except BaseException:
                self._state.end_commit()
                self._undo(request, switch.has_tables)
                raise

    def _await_room(self, request: SwitchRequest, changes: int) -> bool:
        """Wait for a change after these, which may have made room. False if none can, or the deadline has passed."""
        with self._lock:
            left = request.deadline.left()
            most = self._state.memory.slots_beside(0)
            if not left or len(self.blocks.needs(request.task)) > most:
                return False
            return self._state.news.wait_for(lambda: self._state.changes != changes, left)

    def _release_blocks(self, task: int) -> None:
        self.blocks.release(task)
        if not self.blocks.is_held(task):
            self._loads.abandon(task)

    def _hold_blocks(self, request: SwitchRequest) -> None:
        if self._state.closed:
            raise engine_closed()
        self._check_there(request)
        self.blocks.hold(request.task)

    def _check_there(self, request: SwitchRequest) -> None:
        if self.blocks.is_gone(request.task):
            raise BusyError(f"task {request.name!r} has just left the bundle, or was replaced; ask again")

    def _hold_if_resident(self, request: SwitchRequest) -> bool:
        with self._lock:
            self._state.news.wait_for(lambda: not self._state.committing, request.deadline.left())
            if self._state.committing or not self.blocks.is_resident(request.task):
                return False
            self._hold_blocks(request)
            has_tables = done = False
            try:
                has_tables = request.tables is None or self._state.memory.tables.hold(request.tables)
                if has_tables:
                    self._state.prefetched.needed(self.blocks.needs(request.task), NO_PAGES, 0)
                    done = True
            finally:
                if not done:
                    self._undo(request, has_tables)
            return done

    def _undo(self, request: SwitchRequest, has_tables: bool) -> None:
        """Undo a hold. Nobody who waits for room is told: only this turn had it."""
        with self._lock:
            if has_tables and request.tables is not None:
                self._state.memory.tables.release(request.tables)
            self._release_blocks(request.task)

    @contextmanager
    def _my_turn(self, deadline: Deadline, *, stop_prefetch: bool = True) -> Iterator[None]:
        """Keep other switches out. Cancels prefetches that haven't begun, unless told not to."""
        if not deadline.acquire(self._turn):
            raise BusyError("another switch was still going on when the timeout passed; try again, or allow more time")
        try:
            with self._lock:
                if self.blocks.loading:
                    if stop_prefetch:
                        self._loads.stop_prefetch()
                        self._state.news.notify_all()
                    if not self._state.closed:
                        self._loads.cancel_lost()
            yield
        finally:
            self._turn.release()
