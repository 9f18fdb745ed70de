"""Pages that hold their number in every byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.store import PageStore, VerifyingStore


class NumberedPages:
    """A store in which page p holds the byte p. Implements `PageStore`."""

    def __init__(self, page_bytes: int) -> None:
        self._page_bytes = page_bytes

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        for page, view in enumerate(into, first):
            view[:] = bytes([page]) * self._page_bytes

    def span(self, first: int) -> int:
        return 100

    def close(self) -> None:
        pass


def index_of(pages: int, page_bytes: int) -> PageIndex:
    ids = np.stack([np.frombuffer(blake3(bytes([page]) * page_bytes).digest(), np.uint8) for page in range(pages)])
    return PageIndex(ids, np.zeros(pages, np.int32), np.zeros(pages, np.uint64))


def checked(store: PageStore, pages: int, page_bytes: int) -> VerifyingStore:
    """The store as an engine reads it."""
    return VerifyingStore(store, index_of(pages, page_bytes))
