"""Single blocks, rows and low-rank parts out of a bundle's pages."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.format.low_rank import LowRank, StoredParts
from weightpager.page_dtype import page_blocks
from weightpager.store.page_store import LocalStore, VerifyingStore


class BlockReader:
    """Reads blocks by location, from pages that are checked."""

    def __init__(self, bundle: Bundle) -> None:
        """Open a bundle's page files. Raises `BundleFormatError` or `StoreError` of a file that can't be used."""
        self._bundle = bundle
        self._store = VerifyingStore(LocalStore(bundle, direct=False), bundle.pages)

    def read(self, locations: npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """The bytes of the blocks at these locations, uint8 [N, block bytes]; one page in memory at a time.

        Raises:
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be.
        """
        manifest = self._bundle.manifest
        places = manifest.blocks_per_page
        blocks = np.empty((len(locations), self._bundle.block_bytes), np.uint8)
        page = np.empty(self._bundle.page_bytes, np.uint8)
        pages = locations // places
        order = np.argsort(pages, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(pages[order])) + 1) if len(order) else []:
            self._store.read(int(pages[rows[0]]), [page.data])
            blocks[rows] = page_blocks(page, places, manifest.block_shape, manifest.dtype)[locations[rows] % places]
        return blocks

    def close(self) -> None:
        self._store.close()


def read_low_rank(bundle: Bundle, task: str) -> dict[str, LowRank]:
    """A task's low-rank parts by canonical name of the paged weight, as kernels see them; empty if it has none.

    Raises:
        StoreError, PageCorruptError: a page can't be read, or isn't what it should be.
    """
    layout = bundle.low_rank(task)
    return {} if layout is None else layout.parts(read_stored_parts(bundle, task))


def read_stored_parts(bundle: Bundle, task: str) -> StoredParts:
    """What a task's low-rank pages hold. Raises `StoreError` or `PageCorruptError` if it can't be read whole."""
    layout, numbers = bundle.low_rank(task), bundle.low_rank_pages(task)
    assert layout is not None, "the task has low-rank pages"
    pages = np.empty((len(numbers), bundle.page_bytes), np.uint8)
    store = VerifyingStore(LocalStore(bundle, direct=False), bundle.pages)
    try:
        for number, page in zip(numbers.tolist(), pages, strict=True):
            store.read(number, [page.data])
    finally:
        store.close()
    return layout.stored([*pages])


class RowReader:
    """Reads a bundle's tables from pages that are checked; to be used in a ``with`` statement."""

    def __init__(self, bundle: Bundle) -> None:
        """Open a bundle's page files. Raises `BundleFormatError` or `StoreError` of a file that can't be used."""
        self._bundle = bundle
        self._store = VerifyingStore(LocalStore(bundle, direct=False), bundle.index)

    def __enter__(self) -> RowReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def stream(self, name: str) -> Iterator[bytes]:
        """A table's stored rows one after the other in the order of their places, a page at a time.

        Raises:
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be.
        """
        table, page = self._bundle.row_tables[name], np.empty(self._bundle.page_bytes, np.uint8)
        left, first = table.entry.bytes, self._bundle.manifest.pages + table.first
        for number in range(first, first + table.entry.pages(len(page))):
            self._store.read(number, [page.data])
            yield page[:left].tobytes()
            left -= len(page)

    def stored(self, name: str) -> npt.NDArray[np.uint8]:
        """A table as it is stored, uint8 [rows, columns + 2], by row. Errors are those of `stream`."""
        table = self._bundle.row_tables[name]
        flat = np.empty(table.entry.bytes, np.uint8)
        at = 0
        for piece in self.stream(name):
            flat[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return np.asarray(flat.reshape(table.entry.rows, -1)[table.places])
