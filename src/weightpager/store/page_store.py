"""Where pages come from: the smallest interface, a bundle's files, several stores as one, and who checks."""

from __future__ import annotations

import bisect
import operator
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.format import page_file
from weightpager.bundle.reader import read_manifest
from weightpager.errors import BundleError, PageCorruptError, StoreError, WeightpagerError, first_line
from weightpager.machine.storage import MOST_VIEWS, DirectFile


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
        with self._lock:
            self.bytes += read

    def span(self, first: int) -> int:
        """Implements `PageStore.span`. Raises `StoreError` if the store can't say."""
        with _documented(f"say how far page {first} reaches"):
            return operator.index(self._inner.span(first))

    def close(self) -> None:
        """Implements `PageStore.close`; the inner store is asked once. Raises `StoreError` if the store failed."""
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


@final
class LocalStore:
    """Reads the page files of a bundle, past the page cache where the file system allows it.

    Descriptors are opened here and kept: a bundle that is replaced meanwhile doesn't disturb an open store.
    """

    def __init__(self, bundle: Bundle, *, direct: bool = True) -> None:
        """Open the page files. Raises `BundleError` of another bundle's file, `StoreError` if one can't be opened."""
        self._page_bytes = bundle.page_bytes
        self._starts: list[int] = []
        self._files: list[DirectFile | None] = []  # None once a file is closed
        self._end = 0
        self.direct = direct
        descriptors: list[int] = []
        offsets: list[int] = []
        try:
            for name, first, pages in bundle.manifest.page_ranges():
                offset = page_file.check(bundle.path / name, pages, bundle.page_bytes)
                file = _open(bundle.path / name, self.direct)
                self.direct = file.direct
                self._files.append(file)
                descriptors.append(file.descriptor)
                offsets.append(offset)
                self._starts.append(first)
                self._end = first + pages
            self._first_pages = np.array(self._starts, np.int64)
            self._descriptors = np.array(descriptors, np.int32)
            # where page 0 would lie
            self._origins = np.array(offsets, np.int64) - self._first_pages * self._page_bytes
            _check_same(bundle)
        except BaseException:
            self.close()
            raise

    def span(self, first: int) -> int:
        """Pages up to the end of the file that holds ``first``, at most what one system call takes."""
        number = bisect.bisect_right(self._starts, first)
        end = self._starts[number] if number < len(self._starts) else self._end
        return min(end - first, MOST_VIEWS)

    def read(self, first: int, into: Sequence[memoryview]) -> None:
        number = bisect.bisect_right(self._starts, first) - 1
        file = self._files[number]
        if file is None:
            raise StoreError(f"cannot read page {first}: its file has been closed")
        offset = int(self._origins[number]) + first * self._page_bytes
        wanted = sum(map(len, into))
        try:
            count = file.read(into, offset, wanted)
        except OSError as error:
            raise StoreError(f"cannot read page {first}: {error.strerror}") from error
        if count < wanted:
            raise StoreError(f"cannot read page {first}: the file ends too early")

    def sources(self, pages: npt.NDArray[np.int64]) -> Sources:
        files = np.searchsorted(self._first_pages, pages, side="right") - 1
        return Sources(self._descriptors[files], self._origins[files] + pages * self._page_bytes)

    def close_but(self, pages: npt.NDArray[np.int64]) -> None:
        needed = set((np.searchsorted(self._first_pages, pages, side="right") - 1).tolist())
        for number in set(range(len(self._files))) - needed:
            self._descriptors[number] = -1  # another file may get the old one
            self._close(number)

    def close(self) -> None:
        for number in range(len(self._files)):
            self._close(number)

    def _close(self, number: int) -> None:
        file, self._files[number] = self._files[number], None  # first: a descriptor is given back once
        if file is not None:
            file.close()


def _check_same(bundle: Bundle) -> None:
    """See that what lies at the bundle's path still is the bundle.

    Page files of another one may have the same sizes, and no page in them would ever be the right one.
    """
    index = page_file.FILE
    if read_manifest(bundle.path).files.get(index) != bundle.entry(index):
        raise BundleError(
            f"{bundle.path}: expected the bundle that was opened, found another in its place; open it again"
        )


def _open(path: Path, direct: bool) -> DirectFile:
    try:
        return DirectFile(path, direct=direct)
    except OSError as error:
        raise StoreError(f"cannot open {path}: {error.strerror}") from error


Numbers = npt.NDArray[np.int64]

_NOWHERE = -1
"""Stands for the store of a number that no page has."""

_NO_PAGES: Numbers = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class _Part:
    """A store, with pages of it that others read by themselves, so that it must have them open."""

    store: PageStore
    always: Numbers
    files: FileStore | None


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
            parts = (*parts, _Part(store, always, store if isinstance(store, FileStore) else None))
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
    files = None if part == _NOWHERE else places.parts[part].files
    if files is None:
        return None
    if (pages[1:] > pages[:-1]).all():
        return files.sources(pages)
    order = np.argsort(pages)
    found = files.sources(pages[order])
    if found is None:
        return None
    place = np.argsort(order)
    return Sources(found.descriptors[place], found.offsets[place])
