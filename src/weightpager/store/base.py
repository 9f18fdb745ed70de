"""Where pages come from: the smallest interface; a wrapper checks and counts what is read."""

from __future__ import annotations

import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import PageIndex
from weightpager.errors import PageCorruptError, StoreError, WeightpagerError, first_line


@dataclass(frozen=True, eq=False)
class Sources:
    """Where pages lie in files, for whoever reads them without the store.

    Attributes:
        descriptors: descriptors of the files that hold the pages, int32 [N]; open until the store is closed, or closes
            files that it is told not to need.
        offsets: offsets at which the pages begin there, int64 [N].
    """

    descriptors: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]


class PageStore(Protocol):
    """Reads pages. Safe to call from several threads at once."""

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        """Fill each view, one page long, with pages ``first``, ``first + 1`` and so on.

        The pages must lie one behind the other in storage: `span` says how far. When this raises, the views hold
        nothing that may be used.

        Raises:
            StoreError: the storage failed, or gave fewer bytes.
            PageCorruptError: a checking store found a page that doesn't match its id.
        """

    def span(self, first: int) -> int:
        """How many pages, from ``first`` on, one `read` can cover."""

    def close(self) -> None:
        """Give back descriptors; closing twice is fine."""


@runtime_checkable
class FileStore(PageStore, Protocol):
    """A store whose `read` does no more than read files, and that says where the pages lie in them."""

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources | None:
        """Where pages lie, int64 [N], ascending; None if it can't say of all of them."""


@runtime_checkable
class ShrinkingStore(PageStore, Protocol):
    """A store that can close some of its files."""

    def close_but(self, pages: npt.NDArray[np.int64]) -> None:
        """Close the files that hold none of these pages, int64 [N], ascending. No others are read any more."""


@runtime_checkable
class DirectStore(Protocol):
    """A store that says how it reads.

    Attributes:
        direct: whether reads bypass the page cache.
    """

    direct: bool


def is_direct(store: PageStore) -> bool:
    """Whether reads of a store bypass the page cache; False where it doesn't say."""
    return isinstance(store, DirectStore) and store.direct


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
