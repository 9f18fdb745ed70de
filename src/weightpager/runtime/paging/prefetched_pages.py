"""Pages that are on their way though no task has asked for them yet."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable

import numpy as np

from weightpager.runtime.planning.plans import Pages
from weightpager.runtime.planning.prefetch_counts import PrefetchLedger

_log = logging.getLogger(__name__)


class PrefetchedPages:
    """Keeps apart, of the pages that are being loaded, those that nobody waits for, and counts what becomes of them.

    Not thread-safe: its owner holds a lock around every call.

    Attributes:
        ledger: the counts.
        error: why the latest prefetch failed, which the log says too; None if it didn't.
    """

    def __init__(self, pages: int) -> None:
        """Nothing is on its way.

        Args:
            pages: numbers that pages can have.
        """
        self._pages: set[int] = set()
        self.ledger = PrefetchLedger(pages)
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self._pages)

    @property
    def pages(self) -> Collection[int]:
        """Pages on their way that nobody waits for."""
        return self._pages

    def begun(self, pages: Iterable[int]) -> None:
        """These pages are on their way."""
        self.error = None
        self._pages.update(pages)

    def needed(self, pages: Pages, loading: Pages, misses: int) -> None:
        """A task needs its pages, of which some are loading and some will be loaded for it."""
        late = self._pages.intersection(loading.tolist()) if self._pages else ()
        self._pages.difference_update(late)
        self.ledger.needed(pages, len(late), misses)

    def on_read_end(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read of these pages has ended, well or not."""
        if not self._pages:
            return
        came = self._pages.intersection(pages)
        self._pages -= came
        if error is None:
            self.ledger.came(np.array(sorted(came), np.int64))
        elif came:
            if self.error is None:
                _log.warning("a page could not be prefetched: %s", error)
            self.error = error

    def cancelled(self, pages: Iterable[int]) -> None:
        """Reads of these pages are not made."""
        self._pages.difference_update(pages)
