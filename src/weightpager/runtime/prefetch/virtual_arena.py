"""Switches and prefetches in virtual time: plans as the engine makes them, storage by a model, nothing read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.machine.memory import slots_together
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import NO_PAGES, Pages, PrefetchCounts, PrefetchLedger, Uses
from weightpager.runtime.planning.prefetch_planner import NOTHING, PrefetchPlan, plan_batch
from weightpager.store import ReadRun, StorageModel, coalesce
from weightpager.store.read_plan import BYTES_IN_FLIGHT

UsesAt = Callable[[float], "npt.NDArray[np.float64] | None"]
"""Seconds since the last switch → expected uses of each task soon [tasks]; None if nothing can be said."""


def look_again(elapsed: float) -> float:
    """Seconds since the switch at which to forecast anew. Forecasts change less and less as time goes by."""
    return max(0.05, 1.5 * elapsed)


@dataclass(frozen=True)
class Wait:
    """What a switch waited for."""

    seconds: float
    pages: int


class VirtualArena:
    """An arena in virtual time.

    Attributes:
        storage: the model of what reads cost; may be replaced at any time.
        blocks: the manager that knows which page is in which slot.
    """

    def __init__(
        self,
        needs: Sequence[Pages],
        pages: int,
        slots: int,
        page_bytes: int,
        storage: StorageModel,
        span: Callable[[int], int],
        held: Sequence[int] = (),
        *,
        reads: int,
        capacity: int | None = None,
    ) -> None:
        """Nothing is resident, but the tasks that are always held.

        Args:
            needs: of each task the pages, ascending.
            pages: numbers that pages can have.
            slots: how many the arena has.
            page_bytes: bytes of a page.
            storage: what reads cost.
            span: how many pages a read from a page on can cover at most.
            held: tasks that never leave memory; together with any other they fit.
            reads: how many are in flight at most. A switch waits for those that have begun.
            capacity: slots that it may be resized to; ``slots`` if None.
        """
        self.storage = storage
        self.blocks = BlockManager(needs, pages, slots, capacity, together=slots_together(page_bytes))
        self._ledger = PrefetchLedger(pages)
        self._page_bytes = page_bytes
        self._span = span
        self._reads = reads
        self._current: int | None = None
        self._coming: list[Pages] = []  # reads in flight
        self._busy = 0.0  # seconds until they have ended
        self._held = held
        for task in held:
            self.blocks.hold(task)
            self._bring_in(task, None, None)

    def has_room_for(self, task: int) -> bool:
        return self.blocks.needed_together([task, *self._held]) <= self.blocks.slots

    def dwell(self, seconds: float, uses_at: UsesAt) -> None:
        """Tasks run for so long. Meanwhile pages are prefetched."""
        now = min(self._busy, seconds)
        self._busy -= now
        if not self._busy:
            self.settle()
        while now < seconds and not self.is_reading:
            uses = uses_at(now)
            plan = NOTHING if uses is None else self.plan(uses)[0]
            now = now + self.prefetch(plan, seconds - now) if len(plan.load) else look_again(now)

    @property
    def is_reading(self) -> bool:
        """Whether reads are in flight. They last until the switch, even if rounding has left a moment of the dwell."""
        return bool(self._coming)

    def switch(self, task: int, expected_uses: Uses | None) -> Wait:
        """The next task is asked for.

        Args:
            task: its number; see `has_room_for`.
            expected_uses: of each task after it, for eviction; None evicts what was used least recently.
        """
        late, seconds = self._finish_reads(task)
        self.blocks.hold(task)
        pages = self._bring_in(task, self._current, expected_uses)
        if len(self.blocks.missing(task)):
            self.leave()
            pages = np.concatenate([pages, self._bring_in(task, None, expected_uses)])
        self.leave()
        self._current = task
        self._ledger.needed(self.blocks.needs(task), late, len(pages))
        return Wait(seconds + self._seconds(pages), len(pages))

    def resize(self, slots: int, expected_uses: Uses | None = None) -> None:
        """Use so many slots, once reads in flight have ended (`settle`). What tasks will use least goes."""
        fewer = self.blocks.slots - slots
        if fewer <= 0:
            self.blocks.restore(-fewer)
            return
        retired, pages = self.blocks.to_retire(fewer, expected_uses)
        self._evict(pages)
        self.blocks.retire(retired)

    def settle(self) -> float:
        """Let the reads in flight end, whatever is wanted next. Returns how many seconds that takes."""
        coming, seconds, self._coming, self._busy = self._coming, self._busy, [], 0.0
        for pages in coming:
            self._arrived(pages)
        return seconds

    def leave(self) -> None:
        """Leave the current task, if any. Its pages stay until their slots are wanted."""
        if self._current is not None:
            self.blocks.release(self._current)
            self._current = None

    @property
    def counts(self) -> PrefetchCounts:
        return self._ledger.counts

    def plan(self, uses: npt.NDArray[np.float64]) -> tuple[PrefetchPlan, float]:
        """The batch that is worth most by tasks' expected uses, and its worthiest page's worth; 0 if empty."""
        return plan_batch(self.blocks.occupancy(), self.blocks.worth(uses), self._page_bytes)

    def prefetch(self, plan: PrefetchPlan, seconds: float) -> float:
        """Load a batch that isn't empty, for at most ``seconds``. Reads that have begun by then stay in flight.

        Returns how long it takes.
        """
        self._evict(plan.evict)
        self.blocks.reserve(plan.load)
        runs = [np.arange(run.first, run.first + run.count) for run in self._runs(plan.load)]
        ends = np.cumsum([self._seconds(pages) for pages in runs])
        done = int(np.searchsorted(ends, seconds, side="right"))
        for pages in runs[:done]:
            self._arrived(pages)
        begun = done + self._begun(runs[done:])
        self._coming = runs[done:begun]
        for pages in runs[begun:]:
            self.blocks.cancel(pages.tolist())
        self._busy = max(0.0, float(ends[:begun][-1]) - seconds)
        return seconds if self._coming else float(ends[-1])

    def _begun(self, runs: Sequence[Pages]) -> int:
        """How many of these reads begin before the first has ended."""
        before = np.cumsum([0, *(len(pages) * self._page_bytes for pages in runs)])[:-1]
        return min(self._reads, int(np.searchsorted(before, BYTES_IN_FLIGHT)))

    def _finish_reads(self, task: int) -> tuple[int, float]:
        """Let the reads in flight end. Returns how many of their pages the task needs, and how long that takes."""
        coming = np.concatenate([NO_PAGES, *self._coming])
        wanted = np.isin(coming, self.blocks.needs(task))
        self.blocks.publish(coming.tolist())
        self._ledger.came(coming[~wanted])
        seconds, self._coming, self._busy = self._busy, [], 0.0
        return int(wanted.sum()), seconds

    def _bring_in(self, task: int, previous: int | None, expected_uses: Uses | None) -> Pages:
        plan = self.blocks.plan(task, previous, None if expected_uses is None else lambda: expected_uses)
        if plan is None:
            raise ValueError("expected a task that fits into the arena")
        self._evict(plan.evict)
        self.blocks.reserve(plan.prepare)
        self.blocks.publish(plan.prepare)
        return plan.prepare

    def _evict(self, pages: Pages) -> None:
        self.blocks.evict(pages)
        self._ledger.went(pages)

    def _arrived(self, pages: Pages) -> None:
        self.blocks.publish(pages.tolist())
        self._ledger.came(pages)

    def _runs(self, pages: Pages) -> list[ReadRun]:
        return coalesce(sorted(pages.tolist()), self._span, self._page_bytes)

    def _seconds(self, pages: Pages) -> float:
        return self.storage.seconds(len(self._runs(pages)), len(pages) * self._page_bytes)
