"""A store that checks what another one reads."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import PageCorruptError, StoreError, WeightpagerError, first_line
from weightpager.store.base import FileStore, PageStore, Sources


class VerifyingStore:
    """Compares every page with its id before anybody sees it, and counts what was read.

    Whatever the inner store raises, an `OSError` say, comes as the error that `PageStore` documents, with its cause.

    Attributes:
        index: the pages' ids; may be replaced by an index that has more pages.
        bytes: bytes that storage has delivered, pages that failed their check included; compared with what a plan
            promised.
    """

    def __init__(self, inner: PageStore, index: PageIndex) -> None:
        self._inner = inner
        self._files = inner if isinstance(inner, FileStore) else None
        self._lock = threading.Lock()
        self._closed = False
        self.index = index
        self.bytes = 0

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        with _documented(f"read page {first}"):
            self._inner.read(first, into)
            self.count(sum(map(len, into)))
            for page, view in enumerate(into, first):
                if blake3(view).digest() != self.index.ids[page].tobytes():
                    raise PageCorruptError(page, "on load")

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        """Implements `FileStore.sources`. Whoever reads there has to check what comes, and to `count` it."""
        return None if self._files is None else self._files.sources(pages)

    def count(self, read: int) -> None:
        """Count bytes that have been read."""
        with self._lock:
            self.bytes += read

    def span(self, first: int) -> int:
        """Implements `PageStore.span`.

        Raises:
            StoreError: the store can't say.
        """
        with _documented(f"say how far page {first} reaches"):
            return operator.index(self._inner.span(first))

    def close(self) -> None:
        """Implements `PageStore.close`; the inner store is asked once.

        Raises:
            StoreError: the store failed.
        """
        if not self._closed:
            self._closed = True
            with _documented("close the store"):
                self._inner.close()


@contextmanager
def _documented(what: str) -> Iterator[None]:
    try:
        yield
    except WeightpagerError:
        raise
    except Exception as error:
        raise StoreError(f"cannot {what}: {type(error).__name__}: {first_line(error)}") from error
