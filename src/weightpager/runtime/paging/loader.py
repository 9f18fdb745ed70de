"""Carries plans out: the two phases of a switch, and prefetches."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from weightpager.errors import TaskNotActiveError, WeightpagerError
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.paging.reads.failures import closed_while_loading
from weightpager.runtime.paging.reads.landed_pages import LandedPages
from weightpager.runtime.paging.reads.load import Priority
from weightpager.runtime.paging.slot_allocator import SlotAllocator
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import LoadStats, PendingLoad, SwitchRequest
from weightpager.runtime.paging.table_holds import TableHold
from weightpager.runtime.planning.plans import NO_PAGES, Pages, SwitchPlan
from weightpager.store.switch_cost import SMALL_SWITCH_BYTES


class Loader:
    """Has the pager load pages, makes them resident as they come, and tells whoever waits for them."""

    def __init__(self, state: PagingState, slots: SlotAllocator) -> None:
        """Nothing is on its way.

        Args:
            state: what the parts of paging share.
            slots: plans and frees the slots that pages are loaded into.
        """
        self._state = state
        self._lock = state.lock
        self._slots = slots
        self._unawaited: dict[int, Sequence[PendingLoad]] = {}  # of each held task, loads that nobody has waited for

    def bring_in(self, request: SwitchRequest, tables: TableHold) -> tuple[LoadStats, PendingLoad | None]:
        """Load what a held task lacks: first what fits beside the previous one, then the rest in that one's place.

        Whoever calls has the turn, and not the lock. Results and errors are those of `Residency.bring_in`.

        Args:
            request: names the task.
            tables: the hold of the task's tables, taken as soon as reads have begun if there is room.
        """
        if request.wait and (small := self._switch_small(request, tables)) is not None:
            return small, None
        stats = LoadStats()
        while True:
            with self._lock:
                plan = self._slots.plan(request)
                if self._begin_commit(plan.needs_commit and not (plan.has_first_phase and request.wait)):
                    commit_plan = self._merged(plan, request)
                    break
                load, stamp = self._start(plan, request), self._stamp()
            tables.try_hold()
            if not request.wait:
                return load.cost(until_now=False), load
            stats += self._finish(load)
            if not plan.needs_commit:
                return stats, None
            with self._lock:
                if self._begin_commit(self._stamp() == stamp and not self._state.blocks.loading):
                    commit_plan = plan.second_phase
                    break
        committed, last_load = self._commit_and_load(request, commit_plan, tables)
        return stats + committed, last_load

    def end_commit(self) -> None:
        """Let others hold tasks again: the second phase is over, or Ctrl-C came just before it."""
        with self._lock:
            self._state.committing = False
            self._lock.notify_all()

    def prefetch(self, pages: Pages) -> None:
        """Load absent pages, ascending, that nobody waits for. The lock is held."""
        slots = self._state.blocks.reserve(pages)
        self._state.pager.load(self._state.store, pages, slots, Priority.PREFETCH, self._on_read_end)
        self._state.prefetched.begun(pages.tolist())

    def stop_prefetch(self) -> None:
        """Don't begin any more of the reads that nobody waits for. The lock is held."""
        self._cancel(but=self._state.waiters.pages)

    def cancel_lost(self) -> None:
        """Free slots of reads that nobody makes: Ctrl-C came between. The lock is held, and the pager isn't closed."""
        reserved = self._state.blocks.reserved().tolist()
        if reserved:
            self._forget(set(reserved) - self._state.pager.pages)

    def abandon(self, task: int) -> None:
        """Cancel what was to be read for a task that nobody holds any more, and for nobody else. The lock is held."""
        loads = self._unawaited.pop(task, ())
        for load in loads:
            self._give_up(load)
        if loads:
            self._cancel_unwanted()

    def _switch_small(self, request: SwitchRequest, tables: TableHold) -> LoadStats | None:
        """Read all that a held task lacks before anything is given up for it.

        None, and nothing has changed, where that is much, some of it is on its way, or there is no room.
        """
        start, landed = time.perf_counter(), self._land(request)
        if landed is None:
            return None
        try:
            return self._take_in(landed, request, tables, start)
        finally:
            landed.drop()  # an error's traceback may keep it for long

    def _land(self, request: SwitchRequest) -> LandedPages | None:
        """Begin to read what a held task lacks beside the arena; None as `_switch_small` says."""
        state = self._state
        with self._lock:
            if state.blocks.loading or not state.blocks.has_room(request.task, request.previous):
                return None
            return state.pager.land(state.store, state.blocks.missing(request.task))

    def _take_in(self, landed: LandedPages, request: SwitchRequest, tables: TableHold, start: float) -> LoadStats:
        """Wait for what a held task lacks, and put it into slots."""
        state = self._state
        tables.try_hold_or_borrow(SMALL_SWITCH_BYTES)
        with self._lock:
            plan, stamp = self._slots.plan(request), self._stamp()
        landed.wait(state.read_timeout, state.pager.reads_ended)
        stats = LoadStats(landed.reads, landed.bytes, time.perf_counter() - start)
        with self._lock:
            if state.closed:
                raise closed_while_loading()
            if self._stamp() != stamp:
                plan = self._slots.plan(request)
            if not self._begin_commit(plan.needs_commit):
                self._place(landed, plan, request)
                return stats
        with self._commit(request):
            self._place(landed, plan.merged(), request)
        return stats

    def _place(self, landed: LandedPages, plan: SwitchPlan, request: SwitchRequest) -> None:
        """Pages that have landed take their slots. The lock is held, and no page is on its way."""
        blocks = self._state.blocks
        self._state.prefetched.needed(blocks.needs(request.task), NO_PAGES, len(plan.prepare))
        self._slots.evict(plan.evict)
        landed.place(blocks.reserve(plan.prepare))
        blocks.publish(plan.prepare)

    def _stamp(self) -> tuple[int, int]:
        """Another value when others have come or gone: what was planned may not be the best any more."""
        return self._state.blocks.version, self._state.changes

    def _begin_commit(self, begins: bool) -> bool:
        """Note whether the second phase begins: nobody may hold a task until its slots are taken. The lock is held."""
        self._state.committing = begins
        return begins

    def _merged(self, plan: SwitchPlan, request: SwitchRequest) -> Callable[[], SwitchPlan]:
        """A way to plan both phases in one, once the previous task has been given up. The lock is held.

        What is loading now may have come by then, or not.
        """
        if self._state.blocks.loading:
            return partial(self._slots.plan, request.after_give_up())
        return plan.merged

    def _commit_and_load(
        self, request: SwitchRequest, make_plan: Callable[[], SwitchPlan], tables: TableHold
    ) -> tuple[LoadStats, PendingLoad | None]:
        """Give up the previous task, and load what is planned then in its place."""
        with self._commit(request):
            load = self._start(make_plan(), request)
        tables.try_hold()
        if not request.wait:
            return load.cost(until_now=False), load
        try:
            return self._finish(load), None
        except WeightpagerError as error:
            raise request.failed(error) from error

    @contextmanager
    def _commit(self, request: SwitchRequest) -> Iterator[None]:
        """Give up the previous task. Until its place is taken, with the lock held, nobody else can hold a task."""
        try:
            request.give_up()
            with self._lock:
                yield
        except WeightpagerError as error:
            raise request.failed(error) from error
        finally:
            self.end_commit()

    def _start(self, plan: SwitchPlan, request: SwitchRequest) -> PendingLoad:
        state = self._state
        state.prefetched.needed(state.blocks.needs(request.task), plan.loading, len(plan.prepare))
        self._slots.evict(plan.evict)
        before = state.blocks.reserved().tolist()
        slots = state.blocks.reserve(plan.prepare)
        pages = [*plan.loading.tolist(), *plan.prepare.tolist()]
        pending = PendingPages(pages, state.index.layers, state.read_timeout, before)
        reads = state.pager.load(state.store, plan.prepare, slots, request.priority, self._on_read_end)
        state.waiters.add(pending)
        load = PendingLoad(reads, len(plan.prepare) * state.memory.page_bytes, pending)
        if not request.wait:
            earlier = [other for other in self._unawaited.get(request.task, ()) if not other.pages.complete]
            self._unawaited[request.task] = [*earlier, load]
        return load

    def _finish(self, load: PendingLoad) -> LoadStats:
        try:
            load.pages.wait()
        except BaseException:
            with self._lock:
                self._give_up(load)
                self._cancel_unwanted()
            raise
        return load.cost(until_now=True)

    def _give_up(self, load: PendingLoad) -> None:
        """Nobody waits for a load any more."""
        self._state.waiters.remove(load.pages)
        if not load.pages.complete:
            load.pages.failed(TaskNotActiveError("the task was left before its pages had come"))

    def _cancel_unwanted(self) -> None:
        """Don't begin reads of pages that nobody waits for and nobody prefetches, whichever load they belong to."""
        self._cancel(but={*self._state.waiters.pages, *self._state.prefetched.pages})

    def _cancel(self, but: Collection[int]) -> None:
        """Don't begin reads of other pages than these."""
        self._forget(self._state.pager.cancel(but))

    def _forget(self, pages: Collection[int]) -> None:
        """Free the slots of pages that won't come."""
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
                state.blocks.cancel(pages)
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
            self._lock.notify_all()
