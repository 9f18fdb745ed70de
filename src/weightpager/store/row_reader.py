"""`RowReader`: whole tables whose rows are in pages, for those who need them at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.store.local import LocalStore
from weightpager.store.verifying import VerifyingStore


class RowReader:
    """Reads a bundle's tables from pages that are checked; to be used in a ``with`` statement."""

    def __init__(self, bundle: Bundle) -> None:
        """Open a bundle's page files.

        Raises:
            BundleFormatError, StoreError: a file isn't what the manifest says, or can't be opened.
        """
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
