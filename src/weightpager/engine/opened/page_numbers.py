"""Numbers of a bundle's pages, which outlive a change of the bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle, PageIndex
from weightpager.errors import BundleError
from weightpager.runtime.planning.plans import Pages
from weightpager.store import JoinedStore, PageStore


class PageNumbers:
    """Every page that a bundle has had since the engine opened it, each under one number.

    A page that is found again in a changed bundle, by its id and layer, keeps its number and the place that it is read
    from. Of pages that are equal, the first is taken for the first, and so on.

    Attributes:
        index: ids and layers of all pages; signatures are those of the bundle that brought the page, and not used.
        store: the store that reads pages by these numbers.
        capacity: the most numbers that there can be.
    """

    def __init__(self, bundle: Bundle, store: PageStore, capacity: int) -> None:
        self.capacity = capacity
        self.store = JoinedStore()
        self.index = PageIndex(bundle.pages.ids[:0], bundle.pages.layers[:0], bundle.pages.signatures[:0])
        self.adopt(bundle, store, self.of(bundle))

    def of(self, bundle: Bundle) -> npt.NDArray[np.int64]:
        """The numbers of a bundle's pages, int64 [its pages]. New pages get the next free ones.

        Raises:
            BundleError: there are more than the engine has room for.
        """
        known = {key: number for number, key in enumerate(_keys(self.index))}
        numbers = np.array([known.get(key, -1) for key in _keys(bundle.pages)], np.int64)
        new = numbers < 0
        numbers[new] = len(self.index) + np.arange(new.sum())
        if len(self.index) + new.sum() > self.capacity:
            raise BundleError(
                f"{bundle.path}: expected at most {self.capacity} pages since the engine was opened, found "
                f"{len(self.index) + new.sum()}; close it and open the bundle again"
            )
        return numbers

    def new_among(self, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Indices of a bundle's pages that aren't read from any store yet, ascending.

        Args:
            numbers: what `of` has said of the bundle.
        """
        return np.flatnonzero(numbers >= len(self.index))

    def adopt(self, bundle: Bundle, store: PageStore, numbers: npt.NDArray[np.int64]) -> None:
        """Read new pages from this store from now on. It is closed with the others.

        Args:
            bundle: whose pages they are.
            store: the bundle's store.
            numbers: what `of` has said of it.
        """
        new = self.new_among(numbers)
        old, added = self.index, bundle.pages
        self.store.add(store, new)
        self.index = (
            added
            if not len(old)
            else PageIndex(
                np.concatenate([old.ids, added.ids[new]]),
                np.concatenate([old.layers, added.layers[new]]),
                np.concatenate([old.signatures, added.signatures[new]]),
            )
        )


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
