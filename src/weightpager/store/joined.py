"""Pages of several stores under one numbering."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.errors import StoreError
from weightpager.store.base import FileStore, PageStore, ShrinkingStore, Sources

Numbers = npt.NDArray[np.int64]

_NOWHERE = -1
"""Stands for the store of a number that no page has."""

_NO_PAGES: Numbers = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Part:
    """A store, with pages of it that others read by themselves, so that it must have them open."""

    store: PageStore
    always: Numbers


@dataclass(frozen=True, eq=False)
class _Places:
    """Where each number is read.

    Attributes:
        parts: the stores.
        part: int32 [numbers], which of them, or `_NOWHERE`.
        page: int64 [numbers], the page's number there.
        ends: int64 [numbers], the first number after the pages that follow each other from this one on.
    """

    parts: tuple[_Part, ...]
    part: npt.NDArray[np.int32]
    page: Numbers
    ends: Numbers

    @classmethod
    def of(cls, parts: tuple[_Part, ...], part: npt.NDArray[np.int32], page: Numbers) -> _Places:
        last = np.flatnonzero((np.diff(part) != 0) | (np.diff(page) != 1))
        ends = np.append(last + 1, len(part))
        return cls(parts, part, page, ends[np.searchsorted(ends, np.arange(len(part)), side="right")])

    def pages(self, number: int) -> Numbers:
        """Pages of a store that are to be read, ascending."""
        return np.union1d(self.page[self.part == number], self.parts[number].always)


class JoinedStore:
    """Reads pages by numbers of its own, each from the store that has it.

    `change` may come while pages are read. A number that is being read must keep its place then, and is one of those
    that are kept: whoever calls sees to that.
    """

    def __init__(self) -> None:
        # Replaced whole, so that readers need no lock.
        self._places = _Places.of((), np.zeros(0, np.int32), _NO_PAGES)
        self._lock = threading.Lock()  # of what is closed
        self._closed = False

    def __len__(self) -> int:
        return len(self._places.part)

    def change(
        self,
        numbers: Numbers,
        store: PageStore | None,
        pages: Numbers,
        kept: Numbers,
        always: Numbers = _NO_PAGES,
    ) -> None:
        """Read some numbers from another store from now on, and others not at all.

        Args:
            numbers: those that are read there.
            store: has their pages, and is closed with this one, or once none is left; None to move none.
            pages: what the store calls them.
            kept: all numbers that may be read, with those; the others name no page any more.
            always: pages that the store must have open as long as this one is.
        """
        old = self._places
        part = np.full(max(len(old.part), int(numbers.max(initial=-1)) + 1), _NOWHERE, np.int32)
        page = np.zeros(len(part), np.int64)
        stay = kept[kept < len(old.part)]
        part[stay], page[stay] = old.part[stay], old.page[stay]
        parts = old.parts
        if store is not None:
            part[numbers], page[numbers] = len(parts), pages
            parts = (*parts, _Part(store, always))
        self._places = _Places.of(parts, part, page)

    def close_unused(self) -> None:
        """Close stores and files that no number is read from.

        Raises:
            Exception: what a store raises. All others are closed, and none is asked again.
        """
        with self._lock, ExitStack() as closing:
            places = self._places
            used = [number for number in range(len(places.parts)) if len(places.pages(number)) and not self._closed]
            new_number = np.full(len(places.parts) + 1, _NOWHERE, np.int32)  # the last one is `_NOWHERE`'s
            new_number[used] = np.arange(len(used))
            parts = tuple(places.parts[number] for number in used)
            self._places = _Places(parts, new_number[places.part], places.page, places.ends)
            for part in set(places.parts) - set(parts):
                closing.callback(part.store.close)
            for number, part in enumerate(parts):
                if isinstance(part.store, ShrinkingStore):
                    closing.callback(part.store.close_but, self._places.pages(number))

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        places = self._places
        part = int(places.part[first])
        if part == _NOWHERE:
            raise StoreError(f"cannot read page {first}: the bundle has none of this number any more")
        places.parts[part].store.read(int(places.page[first]), into)

    def span(self, first: int) -> int:
        """Implements `PageStore.span`; of a number that no page has any more, which old plans may ask for, it is 1."""
        places = self._places
        part = int(places.part[first])
        if part == _NOWHERE:
            return 1
        return min(int(places.ends[first]) - first, places.parts[part].store.span(int(places.page[first])))

    def sources(self, pages: Numbers) -> Sources | None:
        """Implements `FileStore.sources`; None if one of the stores can't say."""
        places = self._places
        part = places.part[pages]
        if len(part) and (part == part[0]).all():
            return _sources(places, int(part[0]), places.page[pages])
        descriptors, offsets = np.empty(len(pages), np.int32), np.empty(len(pages), np.int64)
        for number in np.unique(part).tolist():
            chosen = np.flatnonzero(part == number)
            found = _sources(places, number, places.page[pages[chosen]])
            if found is None:
                return None
            descriptors[chosen], offsets[chosen] = found.descriptors, found.offsets
        return Sources(descriptors, offsets)

    def close(self) -> None:
        with self._lock, ExitStack() as closing:
            self._closed = True
            for part in self._places.parts:
                closing.callback(part.store.close)


def _sources(places: _Places, part: int, pages: Numbers) -> Sources | None:
    """Where pages of one of the stores lie, in whatever order they come."""
    store = None if part == _NOWHERE else places.parts[part].store
    if not isinstance(store, FileStore):
        return None
    if (np.diff(pages) > 0).all():
        return store.sources(pages)
    order = np.argsort(pages)
    found = store.sources(pages[order])
    if found is None:
        return None
    place = np.argsort(order)
    return Sources(found.descriptors[place], found.offsets[place])
