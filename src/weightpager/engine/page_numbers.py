"""Numbers of a bundle's pages, which outlive a change of the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle, PageIndex
from weightpager.errors import BundleError
from weightpager.runtime.planning.pages import NO_PAGES, Pages
from weightpager.store import JoinedStore, PageStore

_Entry = TypeVar("_Entry", bound=np.generic)


class PageNumbers:
    """A number for each page of a bundle that changes.

    A page that is found again in a changed bundle, by its id and layer, keeps its number. Of pages that are equal, the
    first is taken for the first, and so on. The number of a page that nobody needs any more is free: a later change may
    give it to another page, but never the change with which it became free. Until then it names no page, so that
    whoever should still have it meets an error.

    Attributes:
        index: ids and layers by number; of a free number they mean nothing. Signatures are those of the bundle that
            brought the page, and not used.
        store: the store that reads pages by these numbers.
    """

    def __init__(self, bundle: Bundle, store: PageStore, capacity: int, rows: Pages = NO_PAGES) -> None:
        """Number a bundle's pages in their order.

        Args:
            bundle: to begin with.
            store: the bundle's, which is closed with `store`.
            capacity: the most numbers that there can be.
            rows: pages that are read without a number from files of this store, which stay open for them.
        """
        self.capacity = capacity
        self.store = JoinedStore()
        self.index = PageIndex(bundle.pages.ids[:0], bundle.pages.layers[:0], bundle.pages.signatures[:0])
        self._used: npt.NDArray[np.bool_] = np.zeros(capacity, bool)
        numbers = self.of(bundle)
        self.take_over(bundle, numbers, store, numbers, NO_PAGES, rows)

    def of(self, bundle: Bundle) -> npt.NDArray[np.int64]:
        """The numbers of a bundle's pages, int64 [its pages]. New pages get free ones. Nothing changes by that.

        Raises:
            BundleError: there are more than the engine has room for.
        """
        used = np.flatnonzero(self._used)
        if not len(used) and len(bundle.pages) <= self.capacity:  # the first: none can be known
            return np.arange(len(bundle.pages))
        known = dict(zip(_keys(self._entries(used)), used.tolist(), strict=True))
        numbers = np.array([known.get(key, -1) for key in _keys(bundle.pages)], np.int64)
        new, free = numbers < 0, self._free()
        if new.sum() > len(free):
            raise BundleError(
                f"{bundle.path}: expected at most {len(free)} new pages beside the {len(used)} that are in use now, as "
                f"this engine has room for {self.capacity} since it was opened, found {new.sum()} new ones; "
                "close the engine and open the bundle again"
            )
        numbers[new] = free[: new.sum()]
        return numbers

    def new_among(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices of a bundle's pages that aren't read from any store yet, ascending.

        Args:
            numbers: what `of` has said of the bundle.
        """
        return np.flatnonzero(~self._used[numbers])

    def take_over(
        self,
        bundle: Bundle,
        numbers: npt.NDArray[np.int64],
        store: PageStore | None,
        kept: Pages,
        busy: Pages,
        rows: Pages = NO_PAGES,
    ) -> PageIndex:
        """Have these numbers name the pages of a bundle, and read them from its store from now on. Returns the index.

        What was opened for earlier bundles is closed by `JoinedStore.close_unused`. Should this raise, nothing has
        changed.

        Args:
            bundle: whose pages they are.
            numbers: what `of` has said of it.
            store: the bundle's store; None where it has no new page. Then all are read from where they were before.
            kept: these numbers, and those of other pages that are needed or being read. All others become free.
            busy: numbers of pages that are being read, whose places stay.
            rows: pages that are read without a number from files of this store.
        """
        index = self._with(bundle.pages, numbers)
        used = np.zeros_like(self._used)
        used[kept] = True
        moved = NO_PAGES if store is None else np.flatnonzero(~np.isin(numbers, busy))
        self.store.change(numbers[moved], store, moved, kept, rows)
        self.index, self._used = index, used
        return index

    def _with(self, added: PageIndex, numbers: npt.NDArray[np.int64]) -> PageIndex:
        """The index with new pages."""
        old, new = self.index, self.new_among(numbers)
        at, count = numbers[new], max(len(old), int(numbers.max(initial=-1)) + 1)
        return PageIndex(
            _with(old.ids, count, at, added.ids[new]),
            _with(old.layers, count, at, added.layers[new]),
            _with(old.signatures, count, at, added.signatures[new]),
        )

    def _entries(self, numbers: npt.NDArray[np.int64]) -> PageIndex:
        index = self.index
        return PageIndex(index.ids[numbers], index.layers[numbers], index.signatures[numbers])

    def _free(self) -> npt.NDArray[np.int64]:
        """Free numbers, those of the longest rows first: new pages that follow each other are read together."""
        free = np.flatnonzero(~self._used)
        row = np.cumsum(np.diff(free, prepend=free[:1]) != 1)
        return free[np.argsort(-np.bincount(row)[row], kind="stable")]


def _with(old: npt.NDArray[_Entry], count: int, at: Pages, added: npt.NDArray[_Entry]) -> npt.NDArray[_Entry]:
    """A longer array with other entries at some places."""
    entries = np.zeros((count, *old.shape[1:]), old.dtype)
    entries[: len(old)] = old
    entries[at] = added
    return entries


def _keys(index: PageIndex) -> Iterator[tuple[bytes, int, int]]:
    """What tells each page from all others of its bundle: id, layer, and how many before it had the same."""
    seen: Counter[tuple[bytes, int]] = Counter()
    for page, layer in zip(index.ids, index.layers.tolist(), strict=True):
        key = page.tobytes(), layer
        yield *key, seen[key]
        seen[key] += 1


def pages_of(bundle: Bundle, task: str, numbers: npt.NDArray[np.int64]) -> Pages:
    """A task's pages by these numbers, ascending."""
    return np.sort(numbers[bundle.pages_of(task)])
