"""What prefetching has brought, in pages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.plans import Pages


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
