"""Where pages come from: the smallest interface; a wrapper checks and counts what is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt


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
