"""What to prefetch, and what goes for it: pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.pages import NO_PAGES, Occupancy, Pages

MARGIN = 0.05
"""How much more a page must be worth than the one that goes for it: less than that is noise of the forecast."""

BATCH_BYTES = 16 << 20
"""Bytes that are planned at once: enough to keep storage busy. The next batch is planned by a newer forecast."""


@dataclass(frozen=True, eq=False)
class PrefetchPlan:
    """Pages to prefetch.

    Attributes:
        load: absent pages, those with the highest expected saving first, and among equals the earliest layers'.
        evict: resident pages that are evicted for them. The first pages of ``load`` take free slots; for each later one
            the next of these goes.
    """

    load: Pages
    evict: Pages

    def first(self, count: int) -> PrefetchPlan:
        """The plan for the first so many pages, and for what must go for them."""
        free = len(self.load) - len(self.evict)
        return PrefetchPlan(self.load[:count], self.evict[: max(0, count - free)])


NOTHING = PrefetchPlan(NO_PAGES, NO_PAGES)


def plan_prefetch(occupancy: Occupancy, worth: npt.NDArray[np.floating]) -> PrefetchPlan:
    """The pages that are worth the most, into free slots and in place of those that are worth the least.

    All pages have the same size, and what a page saves doesn't depend on the others: taking them by their worth is
    optimal. Nothing is evicted that is likelier to be used.

    Args:
        occupancy: what is where.
        worth: [pages], expected uses of each page in the near future.
    """
    absent = np.flatnonzero((worth > 0) & ~occupancy.resident & ~occupancy.loading)
    wanted = absent[np.argsort(-worth[absent], kind="stable")]
    spare = np.flatnonzero(occupancy.resident & ~occupancy.locked)[::-1]
    spare = spare[np.argsort(worth[spare], kind="stable")]
    free = occupancy.free
    pairs = min(max(0, len(wanted) - free), len(spare))
    pays = worth[wanted[free : free + pairs]] > (1 + MARGIN) * worth[spare[:pairs]]
    swaps = pairs if pays.all() else int(np.argmin(pays))
    return PrefetchPlan(wanted[: free + swaps], spare[:swaps])


def plan_batch(occupancy: Occupancy, worth: npt.NDArray[np.floating], page_bytes: int) -> tuple[PrefetchPlan, float]:
    """The worthiest batch of `plan_prefetch`, and its worthiest page's worth; 0 where it is empty."""
    plan = plan_prefetch(occupancy, worth).first(max(1, BATCH_BYTES // page_bytes))
    return plan, float(worth[plan.load].max(initial=0.0))
