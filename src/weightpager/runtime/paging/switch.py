"""Carries a switch out: at once if it is small, else in two phases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from weightpager.errors import StoreTimeoutError, WeightpagerError
from weightpager.interrupts import uninterrupted
from weightpager.runtime.paging.load import closed_while_loading
from weightpager.runtime.paging.pager import LandedPages
from weightpager.runtime.paging.state import Loads, LoadStats, PagingState, PendingLoad, SlotAllocator, SwitchRequest
from weightpager.runtime.planning.pages import NO_PAGES, SwitchPlan


class Switch:
    """Brings in what a held task lacks. For one request, and for whoever has the turn and doesn't hold the lock.

    Attributes:
        has_tables: whether the task's tables are held, if it has any.
    """

    def __init__(self, state: PagingState, slots: SlotAllocator, loads: Loads, request: SwitchRequest) -> None:
        self._state = state
        self._lock = state.lock
        self._slots = slots
        self._loads = loads
        self._request = request
        self._previous_is_gone = False
        self.has_tables = request.tables is None

    def carry_out(self) -> tuple[LoadStats, PendingLoad | None]:
        """Load first what fits beside the previous task, then the rest in that one's place.

        Results and errors are those of `Residency.hold`.
        """
        state, request = self._state, self._request
        if request.wait and (small := self._load_small()) is not None:
            return small, None
        stats = LoadStats()
        while True:
            with self._lock:
                plan = self._slots.plan(request)
                state.committing = plan.needs_commit and not (plan.has_prepare_phase and request.wait)
                if state.committing:
                    commit_plan = self._merged(plan)
                    break
                load, stamp = self._loads.start(plan, request), self._stamp()
            self._try_tables()
            if not request.wait:
                return load.cost(until_now=False), load
            stats += self._loads.finish(load)
            if not plan.needs_commit:
                return stats, None
            with self._lock:
                state.committing = self._stamp() == stamp and not state.blocks.loading
                if state.committing:
                    commit_plan = plan.commit_phase
                    break
        committed, last_load = self._commit_and_load(commit_plan)
        return stats + committed, last_load

    def _load_small(self) -> LoadStats | None:
        """Read all that the task lacks before anything is given up for it.

        Returns None, and has changed nothing, where that is much, some of it is on its way, or there is no room.
        """
        start, landed = time.perf_counter(), self._land()
        if landed is None:
            return None
        try:
            return self._take_in(landed, start)
        finally:
            landed.drop()  # an error's traceback may keep it for long

    def _land(self) -> LandedPages | None:
        """Begin to read what the task lacks beside the arena. Returns None where `_load_small` does."""
        state, request = self._state, self._request
        with self._lock:
            if state.blocks.loading or not state.blocks.has_room(request.task, request.previous):
                return None
            return state.pager.land(state.store, state.blocks.missing(request.task))

    def _take_in(self, landed: LandedPages, start: float) -> LoadStats:
        """Wait for what the task lacks, and put it into slots."""
        state, request = self._state, self._request
        self._try_tables()
        with self._lock:
            plan, stamp = self._slots.plan(request), self._stamp()
        try:
            landed.wait(state.read_timeout, self._reads_ended)
        except StoreTimeoutError:
            with self._lock:
                state.reading.extend(landed.pages.tolist())  # for good: when reads that were given up end isn't told
            raise
        stats = LoadStats(landed.reads, landed.bytes, time.perf_counter() - start)
        with self._lock:
            if state.closed:
                raise closed_while_loading()
            if self._stamp() != stamp:
                plan = self._slots.plan(request)
            state.committing = plan.needs_commit
            if not state.committing:
                self._place(landed, plan)
                return stats
        with self._commit():
            self._place(landed, plan.merged())
        return stats

    def _reads_ended(self) -> int:
        """What is asked again and again while reads are waited for."""
        uninterrupted.check()
        return self._state.pager.reads_ended()

    def _place(self, landed: LandedPages, plan: SwitchPlan) -> None:
        """Put pages that have landed into their slots. The lock is held, and no page is on its way."""
        blocks = self._state.blocks
        self._state.prefetched.needed(blocks.needs(self._request.task), NO_PAGES, len(plan.prepare))
        self._slots.evict(plan.evict)
        landed.place(blocks.reserve(plan.prepare))
        blocks.publish(plan.prepare)

    def _stamp(self) -> tuple[int, int]:
        """A value that changes whenever tasks are held or released, or pages begin to come or go.

        If it has changed, a plan made before may be out of date.
        """
        return self._state.blocks.version, self._state.changes

    def _merged(self, plan: SwitchPlan) -> Callable[[], SwitchPlan]:
        """A way to plan both phases in one, once the previous task has been given up. The lock is held.

        What is loading now may have come by then, or not.
        """
        if self._state.blocks.loading:
            return partial(self._slots.plan, self._request.after_give_up())
        return plan.merged

    def _commit_and_load(self, make_plan: Callable[[], SwitchPlan]) -> tuple[LoadStats, PendingLoad | None]:
        """Give up the previous task, and load what is planned then in its place."""
        with self._commit():
            load = self._loads.start(make_plan(), self._request)
        self._try_tables()
        if not self._request.wait:
            return load.cost(until_now=False), load
        try:
            return self._loads.finish(load), None
        except WeightpagerError as error:
            raise self._request.failed(error) from error

    @contextmanager
    def _commit(self) -> Iterator[None]:
        """Give up the previous task. Until its place is taken, with the lock held, nobody else can hold a task."""
        try:
            self._request.give_up()
            self._previous_is_gone = True
            with self._lock:
                yield
        except WeightpagerError as error:
            raise self._request.failed(error) from error
        finally:
            self._state.end_commit()

    def _try_tables(self) -> bool:
        """Hold the tables if tasks in use leave room: while storage works, expanding takes no time."""
        tables = self._request.tables
        self.has_tables = self.has_tables or tables is None or self._state.memory.tables.hold(tables)
        return self.has_tables

    def hold_tables(self) -> None:
        """Hold the tables, once the task's pages are there or on their way.

        If there is no room, the previous task is given up for them, unless somebody else holds it. This comes last,
        since a switch that fails earlier keeps the previous task. If that isn't enough, slots are given up.

        Raises:
            BudgetError: tasks in use leave no room.
            StoreTimeoutError: reads that hang have slots that must go.
            SwitchFailedError: either, after ``give_up``.
        """
        request, cache = self._request, self._state.memory.tables
        if self.has_tables or request.tables is None:
            return
        with self._lock:
            if self._try_tables():
                return
            previous = None if self._previous_is_gone else request.previous_tables
        if previous is not None and cache.has_one_user(previous):
            request.give_up()
            self._previous_is_gone = True
        try:
            with self._lock:
                if not self._try_tables():
                    self._slots.resize(self._state.memory.budget, cache.needed(request.tables))
                    self._try_tables()
        except WeightpagerError as error:
            if not self._previous_is_gone:
                raise
            raise request.failed(error) from error
