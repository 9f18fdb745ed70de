"""Behaviour added to a store by wrapping it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import PageCorruptError
from weightpager.store.base import PageStore


class VerifyingStore:
    """Compares every page with its id before anybody sees it.

    Attributes:
        index: the ids; may be replaced by one that has more pages.
    """

    def __init__(self, inner: PageStore, index: PageIndex) -> None:
        self._inner = inner
        self.index = index

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        """See `PageStore.read`."""
        self._inner.read(first, into)
        for page, view in enumerate(into, first):
            if blake3(view).digest() != self.index.ids[page].tobytes():
                raise PageCorruptError(page, "on load")

    def span(self, first: int) -> int:
        """See `PageStore.span`."""
        return self._inner.span(first)

    def close(self) -> None:
        """See `PageStore.close`."""
        self._inner.close()


class CountingStore:
    """Counts what was read; the counts are what a plan's promise is held against.

    Attributes:
        reads: completed reads.
        pages: pages in them.
        bytes: bytes in them.
    """

    def __init__(self, inner: PageStore) -> None:
        self._inner = inner
        self._lock = threading.Lock()
        self.reads = self.pages = self.bytes = 0

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        """See `PageStore.read`."""
        self._inner.read(first, into)
        with self._lock:
            self.reads += 1
            self.pages += len(into)
            self.bytes += sum(map(len, into))

    def span(self, first: int) -> int:
        """See `PageStore.span`."""
        return self._inner.span(first)

    def close(self) -> None:
        """See `PageStore.close`."""
        self._inner.close()
