"""Behaviour added to a store by wrapping it."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import PageCorruptError, StoreError, WeightpagerError, first_line
from weightpager.store.base import PageStore


class StoreWrapper:
    """A store that does what another one does; wrappers change a part of it."""

    def __init__(self, inner: PageStore) -> None:
        self._inner = inner

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        self._inner.read(first, into)

    def span(self, first: int) -> int:
        return self._inner.span(first)

    def close(self) -> None:
        self._inner.close()


class VerifyingStore(StoreWrapper):
    """Compares every page with its id before anybody sees it.

    Attributes:
        index: the ids; may be replaced by one that has more pages.
    """

    def __init__(self, inner: PageStore, index: PageIndex) -> None:
        super().__init__(inner)
        self.index = index

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        self._inner.read(first, into)
        for page, view in enumerate(into, first):
            if blake3(view).digest() != self.index.ids[page].tobytes():
                raise PageCorruptError(page, "on load")


class CountingStore(StoreWrapper):
    """Counts what was read, so that it can be compared with a plan.

    Attributes:
        reads: completed reads.
        pages: pages in them.
        bytes: bytes in them.
    """

    def __init__(self, inner: PageStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.reads = self.pages = self.bytes = 0

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        self._inner.read(first, into)
        with self._lock:
            self.reads += 1
            self.pages += len(into)
            self.bytes += sum(map(len, into))


class ContractStore(StoreWrapper):
    """Turns what a store raises, such as an `OSError`, into the errors that `PageStore` documents; keeps the cause."""

    def __init__(self, inner: PageStore) -> None:
        super().__init__(inner)
        self._closed = False

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        with _documented(f"read page {first}"):
            self._inner.read(first, into)

    def span(self, first: int) -> int:
        """See `PageStore.span`.

        Raises:
            StoreError: the store can't say.
        """
        with _documented(f"say how far page {first} reaches"):
            return operator.index(self._inner.span(first))

    def close(self) -> None:
        """See `PageStore.close`; the store is asked once.

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
