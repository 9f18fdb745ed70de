"""Who waits for which pages."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from weightpager.runtime.paging.page_waits import Arrivals


class Waiters:
    """Those who wait for pages that are on their way. Not thread-safe: its owner holds a lock around every call."""

    def __init__(self) -> None:
        self._of_page: dict[int, list[Arrivals]] = {}
        self._all: list[Arrivals] = []

    @property
    def pages(self) -> Collection[int]:
        """That anybody waits for."""
        return self._of_page.keys()

    def add(self, arrivals: Arrivals, pages: Iterable[int]) -> None:
        """One more waits for these pages."""
        if not arrivals.complete:
            self._all.append(arrivals)
        for page in pages:
            self._of_page.setdefault(page, []).append(arrivals)

    def take(self, pages: Iterable[int]) -> list[Arrivals]:
        """Those who waited for any of these pages, each once; for these pages they wait no more."""
        return list(dict.fromkeys(arrivals for page in pages for arrivals in self._of_page.pop(page, ())))

    def passed(self, pages: Collection[int]) -> None:
        """These pages have come: who waits for others may only have waited for their turn."""
        self._all = [arrivals for arrivals in self._all if not arrivals.complete]
        for arrivals in self._all:
            arrivals.passed(pages)

    def remove(self, arrivals: Arrivals) -> None:
        """One waits no more."""
        self._all = [other for other in self._all if other is not arrivals]
        for page, waiting in list(self._of_page.items()):
            if arrivals in waiting:
                waiting.remove(arrivals)
            if not waiting:
                del self._of_page[page]
