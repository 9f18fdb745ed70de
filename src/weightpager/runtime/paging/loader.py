"""Carries plans out: the two phases of a switch, and prefetches."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from weightpager.errors import SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.paging.reads.failures import closed_while_loading
from weightpager.runtime.paging.reads.landed_pages import MOST_BYTES, LandedPages
from weightpager.runtime.paging.reads.load import Priority
from weightpager.runtime.paging.slot_waits import SlotWaits
from weightpager.runtime.paging.state import PagingState
from weightpager.runtime.paging.switch_request import Loading, LoadStats, SwitchRequest
from weightpager.runtime.planning.plans import NO_PAGES, Pages, SwitchPlan


class Loader:
    """Has the pager load pages, makes them resident as they come, and tells whoever waits for them."""

    def __init__(self, state: PagingState, slots: SlotWaits) -> None:
        """Nothing is on its way.

        Args:
            state: of paging.
            slots: that pages are loaded into.
        """
        self._state = state
        self._lock = state.lock
        self._slots = slots
        self._loadings: dict[int, Sequence[Loading]] = {}  # of each held task, what nobody has waited for

    def bring_in(self, request: SwitchRequest, meanwhile: Callable[[int], None]) -> tuple[LoadStats, Loading | None]:
        """Load what a held task lacks: first what fits beside the task that is left, then the rest in its place.

        Whoever calls has the turn, and not the lock. Results and errors are those of `Residency.bring_in`.

        Args:
            request: for the task.
            meanwhile: called when reads have begun, with the bytes that may be taken beside the budget until they end.
        """
        state, stats = self._state, LoadStats()
        if request.wait and (found := self._bring_in_at_once(request, meanwhile)) is not None:
            return found, None
        while True:
            with self._lock:
                plan = self._slots.plan(request)
                beside = len(plan.prepare) + len(plan.loading)
                state.committing = len(plan.commit) > 0 and not (beside and request.wait)
                rest = None if state.blocks.loading else plan.at_once()
                loading = None if state.committing else self._start(plan, request)
                before = self._seen()
            if loading is None:
                return self._start_alone(request, rest, stats, meanwhile)
            meanwhile(0)
            if not request.wait:
                return loading.cost(until_now=False), loading
            stats += self._finish(loading)
            if not len(plan.commit):
                return stats, None
            with self._lock:
                state.committing = self._seen() == before and not state.blocks.loading
            if state.committing:
                return self._start_alone(request, plan.rest(), stats, meanwhile)

    def prefetch(self, pages: Pages) -> None:
        """Load absent pages, ascending, that nobody waits for. The lock is held."""
        slots = self._state.blocks.reserve(pages)
        self._state.pager.load(self._state.store, pages, slots, Priority.PREFETCH, self._ended)
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
        """Nobody holds a task any more; what hasn't begun, and nobody else wants, isn't read. The lock is held."""
        loadings = self._loadings.pop(task, ())
        for loading in loadings:
            self._give_up(loading)
        if loadings:
            self._cancel_unwanted()

    def _bring_in_at_once(self, request: SwitchRequest, meanwhile: Callable[[int], None]) -> LoadStats | None:
        """Read all that a held task lacks before anything is given up for it.

        None, and nothing has changed, where that is much, some of it is on its way, or there is no room.
        """
        state, blocks, start = self._state, self._state.blocks, time.perf_counter()
        with self._lock:
            if blocks.loading or not blocks.has_room(request.task, request.leaving):
                return None
            landed = state.pager.land(state.store, blocks.missing(request.task))
            if landed is None:
                return None
        meanwhile(MOST_BYTES)
        with self._lock:
            plan, before = self._slots.plan(request), self._seen()
        landed.wait(state.read_timeout, state.pager.ended)
        stats = LoadStats(landed.reads, landed.bytes, time.perf_counter() - start)
        with self._lock:
            if state.closed:
                raise closed_while_loading()
            if self._seen() != before:
                plan = self._slots.plan(request)
            state.committing = len(plan.commit) > 0
            if not state.committing:
                self._place(landed, plan, request)
                return stats
        with self._commit(request):
            self._place(landed, plan.at_once(), request)
        return stats

    def _place(self, landed: LandedPages, plan: SwitchPlan, request: SwitchRequest) -> None:
        """Pages that have landed take their slots. The lock is held, and no page is on its way."""
        blocks = self._state.blocks
        self._state.prefetched.needed(blocks.needs(request.task), NO_PAGES, len(plan.prepare))
        self._slots.evict(plan.evict)
        landed.place(blocks.reserve(plan.prepare))
        blocks.publish(plan.prepare)

    def _seen(self) -> tuple[int, int]:
        """Something else when others have come or gone: what was planned may not be the best any more."""
        return self._state.blocks.version, self._state.changes

    def _start_alone(
        self, request: SwitchRequest, rest: SwitchPlan | None, stats: LoadStats, meanwhile: Callable[[int], None]
    ) -> tuple[LoadStats, Loading | None]:
        """Give up the task that is left, and load the rest in its place; what that is is planned anew if None."""
        with self._commit(request):
            loading = self._start(rest or self._slots.plan(request.alone()), request)
        meanwhile(0)
        if not request.wait:
            return stats + loading.cost(until_now=False), loading
        try:
            return stats + self._finish(loading), None
        except WeightpagerError as error:
            raise _failed(request, error) from error

    @contextmanager
    def _commit(self, request: SwitchRequest) -> Iterator[None]:
        """Give up the task that is left; until its place is taken, with the lock held, nobody else can hold one."""
        try:
            request.give_up()
            with self._lock:
                yield
        except WeightpagerError as error:
            raise _failed(request, error) from error
        finally:
            with self._lock:
                self._state.committing = False
                self._lock.notify_all()

    def _start(self, plan: SwitchPlan, request: SwitchRequest) -> Loading:
        state = self._state
        state.prefetched.needed(state.blocks.needs(request.task), plan.loading, len(plan.prepare))
        self._slots.evict(plan.evict)
        before = state.blocks.reserved().tolist()
        slots = state.blocks.reserve(plan.prepare)
        pages = [*plan.loading.tolist(), *plan.prepare.tolist()]
        pending = PendingPages(pages, state.index.layers, state.read_timeout, before)
        reads = state.pager.load(state.store, plan.prepare, slots, request.priority, self._ended)
        state.waiters.add(pending)
        loading = Loading(reads, len(plan.prepare) * state.memory.page_bytes, pending)
        if not request.wait:
            others = [of for of in self._loadings.get(request.task, ()) if not of.pending.complete]
            self._loadings[request.task] = [*others, loading]
        return loading

    def _finish(self, loading: Loading) -> LoadStats:
        try:
            loading.pending.wait()
        except BaseException:
            with self._lock:
                self._give_up(loading)
                self._cancel_unwanted()
            raise
        return loading.cost(until_now=True)

    def _give_up(self, loading: Loading) -> None:
        """Nobody waits for a load any more."""
        self._state.waiters.remove(loading.pending)
        if not loading.pending.complete:
            loading.pending.failed(TaskNotActiveError("the task was left before its pages had come"))

    def _cancel_unwanted(self) -> None:
        """Don't begin reads of pages that nobody waits for and nobody prefetches, whichever load they belong to."""
        self._cancel(but={*self._state.waiters.pages, *self._state.prefetched.pages})

    def _cancel(self, but: Collection[int]) -> None:
        """Don't begin reads of other pages than these."""
        self._forget(self._state.pager.cancel(but))

    def _forget(self, pages: Collection[int]) -> None:
        """Pages that won't come: their slots are free again."""
        if not pages:
            return
        self._state.prefetched.cancelled(pages)
        self._state.blocks.cancel(pages)

    def _ended(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read has ended: its pages are resident, or their slots free again."""
        state = self._state
        with self._lock:
            if error is None:
                state.blocks.publish(pages)
            else:
                state.blocks.cancel(pages)
            state.prefetched.ended(pages, error)
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


def _failed(request: SwitchRequest, error: WeightpagerError) -> SwitchFailedError:
    return SwitchFailedError(f"switching to {request.name!r} failed, no task is active now: {error}")
