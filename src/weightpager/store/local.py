"""Pages from a bundle on a local file system."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.format import page_file
from weightpager.bundle.reader import read_manifest
from weightpager.errors import BundleError, StoreError
from weightpager.machine.storage import MOST_VIEWS, DirectFile
from weightpager.store.base import Sources


@final
class LocalStore:
    """Reads the page files of a bundle, past the page cache where the file system allows it.

    Descriptors are opened here and kept: a bundle that is replaced meanwhile doesn't disturb an open store.

    Attributes:
        direct: whether reads bypass the page cache (O_DIRECT).
    """

    def __init__(self, bundle: Bundle, *, direct: bool = True) -> None:
        """Open the page files.

        Raises:
            BundleError: a file isn't what the manifest says, or another bundle has taken this one's place.
            StoreError: a file can't be opened.
        """
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
        """Implements `FileStore.sources`."""
        files = np.searchsorted(self._first_pages, pages, side="right") - 1
        return Sources(self._descriptors[files], self._origins[files] + pages * self._page_bytes)

    def close_but(self, pages: npt.NDArray[np.int64]) -> None:
        """Implements `ShrinkingStore.close_but`."""
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
