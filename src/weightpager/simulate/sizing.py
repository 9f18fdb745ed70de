"""Sizes a device before it is bought: what a trace of switches would wait for, and the memory that keeps it short."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from weightpager.bundle import Bundle
from weightpager.config import format_enough
from weightpager.distinct import distinct
from weightpager.errors import BudgetError
from weightpager.progress import StepProgress, silent
from weightpager.runtime.budget import needs_of, too_small
from weightpager.simulate.simulator import Device, Recency, Simulation, Simulator, UsePredictor
from weightpager.simulate.waits import Waits
from weightpager.store import StorageModel
from weightpager.trace_file import Visit

RECENCY, REUSE, PREFETCH = "least recently used", "expected reuse", "prefetch"

_STEPS = 10
"""Halvings of the range of budgets."""

WORTH = 0.1
"""Share of the waiting that prefetching must save to be worth its reads."""

_BUDGETS, _SLOWER = 6, (10, 100)
"""Where prefetching is tried: in so many budgets, and on storage so many times slower. The share that it saves hardly
depends on the storage's speed, as long as storage is idle most of the time."""


@dataclass(frozen=True)
class SwitchWaits(Waits):
    """`Waits` of one bundle's switches.

    Attributes:
        hit_rate: share of the pages to be loaded that were there already because they had been prefetched.
        wasted_bytes: bytes that were prefetched and gone again before they were used.
    """

    hit_rate: float
    wasted_bytes: int


@dataclass(frozen=True)
class PrefetchPays:
    """That prefetching saves less than `WORTH` of the waiting, and where it would save that, of what was tried.

    Attributes:
        saved: share of the waiting that it saves; below zero where it loses.
        spare_pages: that have room beside the largest task.
        storage: bytes a second of the fastest storage, slower than the stated one, on which it would, in the same
            budget; None if it would on none.
        slowest: bytes a second of the slowest storage that was tried.
        budget: bytes of the smallest larger budget in which it would, on the same storage; None if it would in none.
    """

    saved: float
    spare_pages: int
    storage: float | None
    slowest: float
    budget: int | None


class Sizing:
    """One bundle, one trace and one storage, under any budget."""

    def __init__(self, bundle: Bundle, visits: Sequence[Visit], storage: StorageModel) -> None:
        """``visits`` come oldest first, two at least."""
        self._bundle = bundle
        self._visits = visits
        self._storage = storage
        self._simulator = Simulator(bundle)

    def slots(self, budget: int | None) -> int:
        """Pages that a budget has room for; None for all that the bundle holds.

        Raises:
            BudgetError: the largest task doesn't fit; says the smallest budget that would do.
        """
        return slots_of(self._bundle, budget, self._simulator.largest_task)

    def waits(self, budget: int | None, progress: StepProgress = silent) -> list[SwitchWaits]:
        """What switches wait for under each policy.

        Raises:
            BudgetError: the largest task doesn't fit.
        """
        device, waits = Device(self.slots(budget), self._storage), []
        for done, policy in enumerate((RECENCY, REUSE, PREFETCH), 1):
            waits.append(_waits_of(policy, self._run(device, policy)))
            progress(done, 3)
        return waits

    def smallest_budget(self, mean_seconds: float, progress: StepProgress = silent) -> int:
        """The fewest bytes with which the mean waiting, with prefetch, is as short as this.

        Raises:
            BudgetError: no budget is enough, since the first use of each task has to be waited for.
        """
        least, most = self._simulator.largest_task, self._simulator.all_pages
        if not self._is_short(most, mean_seconds):
            whole = format_enough(self._budget(most))
            raise BudgetError(
                f"even a budget for all of the bundle, {whole}, waits longer on this trace: "
                "state a longer wait, or faster storage",
                self._budget(most),
            )
        for step in range(_STEPS):
            middle = (least + most) // 2
            least, most = (least, middle) if self._is_short(middle, mean_seconds) else (middle + 1, most)
            progress(step + 1, _STEPS)
            if least >= most:
                break
        progress(_STEPS, _STEPS)
        return self._budget(most)

    def prefetch_pays(
        self, budget: int | None, waits: Sequence[SwitchWaits], progress: StepProgress = silent
    ) -> PrefetchPays | None:
        """Where prefetching would pay; None if it does in this budget, or if all pages fit so that nothing is left.

        ``waits`` are those that `waits` finds in this budget.

        Raises:
            BudgetError: the largest task doesn't fit.
        """
        slots, least, most = self.slots(budget), self._simulator.largest_task, self._simulator.all_pages
        mean = {of.policy: of.mean_ms for of in waits}
        saved = 1 - mean[PREFETCH] / mean[REUSE] if mean[REUSE] else 0.0
        if slots >= most or saved >= WORTH:
            return None
        slower = [replace(self._storage, bytes_per_second=self._storage.bytes_per_second / times) for times in _SLOWER]
        sizes = distinct(np.linspace(least, most, _BUDGETS).astype(int)).tolist()
        tried = iter(range(1, len(slower) + len(sizes) + 1))

        def pays(device: Device) -> bool:
            progress(next(tried), len(slower) + len(sizes))
            without, ahead = (self._run(device, policy).switches.sum() for policy in (REUSE, PREFETCH))
            return bool(ahead < (1 - WORTH) * without)

        storage = next((each.bytes_per_second for each in slower if pays(Device(slots, each))), None)
        enough = next((size for size in sizes if size > slots and pays(Device(size, self._storage))), None)
        room = None if enough is None else self._budget(enough)
        return PrefetchPays(saved, slots - least, storage, slower[-1].bytes_per_second, room)

    def _is_short(self, slots: int, mean_seconds: float) -> bool:
        return float(self._run(Device(slots, self._storage), PREFETCH).switches.mean()) <= mean_seconds

    def _run(self, device: Device, policy: str) -> Simulation:
        return self._simulator.run(self._visits, device, self._use_predictor(policy), prefetch=policy == PREFETCH)

    def _use_predictor(self, policy: str) -> UsePredictor:
        """A policy's predictor, which begins with the bundle's transition matrix, as in an engine."""
        if policy == RECENCY:
            return Recency()
        return self._simulator.learner(self._storage, self._bundle.manifest.transitions)

    def _budget(self, slots: int) -> int:
        """The fewest bytes that leave room for so many pages."""
        return needs_of(self._bundle).holding(slots).total


def slots_of(bundle: Bundle, budget: int | None, largest_task: int) -> int:
    """Pages that a budget has room for; None for all that the bundle holds.

    Raises:
        BudgetError: the largest task doesn't fit; says the smallest budget that would do.
    """
    needs = needs_of(bundle)
    if budget is None:
        return needs.pages
    if budget < needs.holding(largest_task).total:
        raise too_small(needs, "the largest task", largest_task, budget)
    return needs.split(budget).slots


def _waits_of(policy: str, simulation: Simulation) -> SwitchWaits:
    counts = simulation.prefetched
    loaded = counts.loaded + counts.late + sum(wait.pages for wait in simulation.waits[1:])
    waits = Waits.of(policy, simulation.switches, loaded * simulation.page_bytes)
    return SwitchWaits(**vars(waits), hit_rate=counts.hit_rate, wasted_bytes=counts.wasted * simulation.page_bytes)
