"""Keeps the books of what is being loaded: for switches, and for nobody yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from weightpager.errors import TaskNotActiveError
from weightpager.runtime.paging.load import Priority, closed_while_loading
from weightpager.runtime.paging.page_waits import PendingPages
from weightpager.runtime.paging.state import PagingState, SlotAllocator
from weightpager.runtime.paging.switch_request import LoadStats, PendingLoad, SwitchRequest
from weightpager.runtime.planning.plans import Pages, SwitchPlan


class Loads:
    """Has the pager load pages, makes them resident as they come, and tells whoever waits for them."""

    def __init__(self, state: PagingState, slots: SlotAllocator) -> None:
        """Nothing is on its way.

        Args:
            state: what the parts of paging share.
            slots: frees the slots that pages are loaded into.
        """
        self._state = state
        self._lock = state.lock
        self._slots = slots
        self._unawaited: dict[int, Sequence[PendingLoad]] = {}  # of each held task, loads that nobody has waited for

    def start(self, plan: SwitchPlan, request: SwitchRequest) -> PendingLoad:
        """Begin to load what the prepare phase of a plan brings. The lock is held.

        Raises:
            EngineClosedError: it has been closed; nothing has changed.
        """
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
