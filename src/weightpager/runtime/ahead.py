"""Pages that are on their way though no task has asked for them yet."""

from __future__ import annotations

import logging
from collections.abc import Collection

import numpy as np

from weightpager.runtime.pager import Load, Pager
from weightpager.runtime.prefetch_ledger import PrefetchLedger
from weightpager.runtime.switch_plan import Pages

_log = logging.getLogger(__name__)


class Ahead:
    """Keeps apart, of the pages that are being loaded, those that nobody waits for, and counts what becomes of them.

    Not thread-safe: its owner holds a lock around every call.

    Attributes:
        ledger: the counts.
        error: why the last load ahead failed, which the log says too; None if it didn't.
    """

    def __init__(self, pager: Pager, pages: int) -> None:
        """Nothing is on its way.

        Args:
            pager: that loads.
            pages: numbers that pages can have.
        """
        self._pager = pager
        self._pages: set[int] = set()
        self._loads: list[Load] = []
        self.ledger = PrefetchLedger(pages)
        self.error: BaseException | None = None

    def __bool__(self) -> bool:
        return bool(self._pages)

    def begun(self, load: Load) -> None:
        """These pages are on their way."""
        self.error = None
        self._loads.append(load)
        self._pages.update(load.slots)

    def needed(self, pages: Pages, loading: Pages, misses: int) -> None:
        """A task needs its pages, of which some are loading and some will be loaded for it."""
        late = self._pages.intersection(loading.tolist()) if self._pages else ()
        self._pages.difference_update(late)
        self.ledger.needed(pages, len(late), misses)

    def ended(self, pages: Collection[int], error: BaseException | None) -> None:
        """A read has ended, that brought these pages or should have."""
        came = self._pages.intersection(pages)
        self._pages -= came
        if error is None:
            self.ledger.came(np.array(sorted(came), np.int64))
        elif came:
            if self.error is None:
                _log.warning("a page could not be loaded ahead: %s", error)
            self.error = error
        if not self._pages:
            self._loads.clear()

    def stop(self, but: Collection[int]) -> list[int]:
        """Reads that haven't begun are not made, except those of pages ``but``; pages that won't come."""
        gone = [page for load in self._loads for page in self._pager.cancel(load, but)]
        self._loads.clear()
        self._pages.difference_update(gone)
        return gone
