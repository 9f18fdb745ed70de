"""Has plans carried out: the two phases of a switch, and loads ahead of one."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from weightpager.errors import SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.runtime.paging.loading import Loading, LoadStats
from weightpager.runtime.paging.page_waits import Arrivals
from weightpager.runtime.paging.pager import Pager, Priority
from weightpager.runtime.paging.prefetched_pages import Ahead
from weightpager.runtime.paging.slot_waits import Room
from weightpager.runtime.paging.switch_request import Request
from weightpager.runtime.paging.waiters import Waiters
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.switch_plan import Pages, SwitchPlan
from weightpager.store import PageStore


class Loader:
    """Has the pager load pages, makes them resident as they come, and tells whoever waits for them.

    Attributes:
        committing: whether a task has been given up and the next one has no slots yet: nobody may hold a task.
            Guarded by the lock.
    """

    def __init__(
        self,
        blocks: BlockManager,
        room: Room,
        ahead: Ahead,
        pager: Pager,
        store: PageStore,
        lock: threading.Condition,
        patience: float,
        page_bytes: int,
    ) -> None:
        """Nothing is on its way.

        Args:
            blocks: what is in the arena.
            room: in it.
            ahead: what nobody waits for.
            pager: reads pages.
            store: where they come from; it checks them.
            lock: guards all of these; notified when a read ends.
            patience: seconds without any page after which storage is given up.
            page_bytes: bytes of a page.
        """
        self._blocks = blocks
        self._room = room
        self._ahead = ahead
        self._pager = pager
        self._store = store
        self._lock = lock
        self._patience = patience
        self._page_bytes = page_bytes
        self._waiters = Waiters()
        self.committing = False

    def bring_in(self, request: Request, layers: npt.NDArray[np.int32]) -> tuple[LoadStats, Loading | None]:
        """Load what a held task lacks: first what fits beside the task that is left, then the rest in its place.

        Whoever calls has the turn, and not the lock. Results and errors are those of `Residency.bring_in`.

        Args:
            request: for the task.
            layers: int32 [pages], the model layer of each.
        """
        stats = LoadStats()
        while True:
            with self._lock:
                plan = self._room.plan(request)
                beside = len(plan.prepare) + len(plan.loading)
                self.committing = len(plan.commit) > 0 and not (beside and request.wait)
                loading = None if self.committing else self._start(plan, request, layers)
            if loading is None:
                return self._commit(request, layers, stats)
            if not request.wait:
                return loading.cost(until_now=False), loading
            stats += self._finish(loading)
            if not len(plan.commit):
                return stats, None

    def load_ahead(self, pages: Pages) -> None:
        """Load absent pages, ascending, that nobody waits for. The lock is held."""
        slots = self._blocks.reserve(pages)
        self._pager.load(self._store, slots, Priority.PREFETCH, self._ended)
        self._ahead.begun(slots)

    def stop_ahead(self) -> None:
        """Don't begin any more of the reads that nobody waits for. The lock is held."""
        self._cancel(but=self._waiters.pages)

    def cancel_lost(self) -> None:
        """Free slots of reads that nobody makes: Ctrl-C came between. The lock is held, and the pager isn't closed."""
        self._forget(set(self._blocks.reserved().tolist()) - self._pager.pages)

    def abandon(self, loadings: Sequence[Loading]) -> None:
        """Nobody waits for these any more; what hasn't begun, and nobody else wants, isn't read. The lock is held."""
        for loading in loadings:
            self._waiters.remove(loading.arrivals)
            if not loading.arrivals.complete:
                loading.arrivals.failed(TaskNotActiveError("the task was left before its pages had come"))
        if loadings:
            self._cancel_unwanted()

    def _commit(
        self, request: Request, layers: npt.NDArray[np.int32], stats: LoadStats
    ) -> tuple[LoadStats, Loading | None]:
        """Give up the task that is left; until its place is taken, nobody else can hold one."""
        try:
            try:
                request.give_up()
                with self._lock:
                    plan = self._room.plan(Request(request.task, request.name, reuse=request.reuse))
                    loading = self._start(plan, request, layers)
            finally:
                with self._lock:
                    self.committing = False
                    self._lock.notify_all()
            if not request.wait:
                return stats + loading.cost(until_now=False), loading
            return stats + self._finish(loading), None
        except WeightpagerError as error:
            raise SwitchFailedError(f"switching to {request.name!r} failed, no task is active now: {error}") from error

    def _start(self, plan: SwitchPlan, request: Request, layers: npt.NDArray[np.int32]) -> Loading:
        self._ahead.needed(self._blocks.needs(request.task), plan.loading, len(plan.prepare))
        self._room.evict(plan.evict)
        before = self._blocks.reserved().tolist()
        slots = self._blocks.reserve(plan.prepare)
        pages = [*plan.loading.tolist(), *slots]
        arrivals = Arrivals(pages, layers, self._patience, before)
        load = self._pager.load(self._store, slots, request.priority, self._ended)
        self._waiters.add(arrivals, pages)
        return Loading(load, arrivals, self._page_bytes)

    def _finish(self, loading: Loading) -> LoadStats:
        try:
            loading.arrivals.wait()
        except BaseException:
            with self._lock:
                self.abandon([loading])
            raise
        return loading.cost(until_now=True)

    def _cancel_unwanted(self) -> None:
        """Whoever's load brings them: a page may be waited for by others than those it was first loaded for."""
        self._cancel(but={*self._waiters.pages, *self._ahead.pages})

    def _cancel(self, but: Collection[int]) -> None:
        """Don't begin reads of other pages than these."""
        self._forget(self._pager.cancel(but))

    def _forget(self, pages: Collection[int]) -> None:
        """Pages that won't come: their slots are free again."""
        self._ahead.cancelled(pages)
        self._blocks.cancel(pages)

    def _ended(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read has ended: its pages are resident, or their slots free again."""
        with self._lock:
            if error is None:
                self._blocks.publish(pages)
            else:
                self._blocks.cancel(pages)
            self._ahead.ended(pages, error)
            if self._ahead.error is not None:
                self.stop_ahead()
            for arrivals in self._waiters.take(pages):
                if error is None:
                    arrivals.arrived(pages)
                else:
                    arrivals.failed(error)
                    self._waiters.remove(arrivals)
            if error is None:
                self._waiters.passed(pages)
            else:
                self._cancel_unwanted()
            self._lock.notify_all()
