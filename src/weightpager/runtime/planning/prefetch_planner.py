"""What to prefetch, and what goes for it: pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import NO_PAGES, Occupancy, Pages

MARGIN = 0.05
"""How much more a page must be worth than the one that goes for it: less than that is noise of the forecast."""


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


@dataclass(frozen=True)
class PrefetchCounts:
    """What prefetching has brought, in pages.

    Attributes:
        loaded: pages that a prefetch loaded, whether they were used or not; without those that were late.
        hits: there when a task needed them.
        late: still on their way then.
        misses: loaded only when a task waited for them.
        wasted: gone again before any task needed them.
    """

    loaded: int = 0
    hits: int = 0
    late: int = 0
    misses: int = 0
    wasted: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of the pages to be loaded that were there already; 0 if there were none."""
        wanted = self.hits + self.late + self.misses
        return self.hits / wanted if wanted else 0.0


class PrefetchLedger:
    """Follows each page that was prefetched until a task needs it or it goes. Not thread-safe.

    Args:
        pages: numbers that pages can have.
    """

    def __init__(self, pages: int) -> None:
        self._unused: npt.NDArray[np.bool_] = np.zeros(pages, bool)
        self._loaded = self._hits = self._late = self._misses = self._wasted = 0

    @property
    def counts(self) -> PrefetchCounts:
        """The counts so far."""
        return PrefetchCounts(self._loaded, self._hits, self._late, self._misses, self._wasted)

    def came(self, pages: Pages) -> None:
        """Prefetched pages are there."""
        self._unused[pages] = True
        self._loaded += len(pages)

    def went(self, pages: Pages) -> None:
        """Pages were evicted."""
        if self._waiting:
            self._wasted += int(self._unused[pages].sum())
            self._unused[pages] = False

    def needed(self, pages: Pages, late: int = 0, misses: int = 0) -> None:
        """A task needs its pages, of which some are still coming, and some were not even begun."""
        self._late += late
        self._misses += misses
        if self._waiting:
            self._hits += int(self._unused[pages].sum())
            self._unused[pages] = False

    @property
    def _waiting(self) -> bool:
        """Whether any prefetched page is there that no task has needed yet."""
        return self._loaded > self._hits + self._wasted
