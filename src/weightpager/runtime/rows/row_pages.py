"""`RowPages`: a table's rows, read from their pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.distinct import distinct
from weightpager.machine.storage import aligned_memory
from weightpager.runtime.paging.pager import Pager
from weightpager.store import VerifyingStore

Ids = npt.NDArray[np.int64]

ReadPages = Callable[[Ids, npt.NDArray[np.uint8]], int]
"""Reads pages, ascending, into uint8 [pages, page_bytes], each checked by its hash; how many reads that took."""

AT_ONCE = 1 << 20
"""Bytes of pages that are read before their rows are taken out. Memory for them is beside the budget, as activations
are, and given back at once."""


@dataclass(frozen=True)
class RowReads:
    """Reads pages of rows.

    Attributes:
        pager: whose threads read, and what threads that read themselves need.
        store: the store that pages come from.
        read_timeout: seconds in which no read ends, after which storage is given up.
    """

    pager: Pager
    store: VerifyingStore
    read_timeout: float

    def read(self, pages: Ids, into: npt.NDArray[np.uint8]) -> int:
        """Read pages by threads of the pager. Arguments and errors are those of `Pager.read`."""
        return self.pager.read(self.store, pages, into, self.read_timeout)


@dataclass(frozen=True)
class ReadRows:
    """Rows that have been read.

    Attributes:
        start, end: bounds of these rows among the wanted ones.
        stored: uint8 [bytes] of their pages.
        offsets: int64 [end − start], where in ``stored`` each begins.
    """

    start: int
    end: int
    stored: npt.NDArray[np.uint8]
    offsets: Ids


class RowPages:
    """Knows where a table's rows lie.

    Args:
        entry: the table's entry in the manifest.
        first: number of its first page.
        page_bytes: bytes of a page.
        read: reads pages by number.
    """

    def __init__(self, entry: RowTableEntry, first: int, page_bytes: int, read: ReadPages) -> None:
        self._row_bytes = entry.row_bytes
        self._first = first
        self._page_bytes = page_bytes
        self._read = read

    def read(self, places: Ids) -> Iterator[ReadRows]:
        """Read the rows of these places, ascending, each once, a piece at a time.

        Raises:
            StoreError, PageCorruptError, EngineClosedError: as reading the pages.
        """
        row, page = self._row_bytes, self._page_bytes
        most = max(1, AT_ONCE // (page * (1 + -(-row // page))))  # rows whose pages surely are no more
        for start in range(0, len(places), most):
            begin = places[start : start + most] * row
            pages = self._pages(begin)
            buffer = np.frombuffer(aligned_memory(len(pages) * page), np.uint8)
            self._read(pages + self._first, buffer.reshape(-1, page))
            # A row's pages follow each other in the buffer as they do in the table.
            offsets = np.searchsorted(pages, begin // page) * page + begin % page
            yield ReadRows(start, start + len(begin), buffer, offsets)

    def _pages(self, begin: Ids) -> Ids:
        """The table's pages that hold rows which begin at these bytes of its stream, ascending."""
        first, last = begin // self._page_bytes, (begin + self._row_bytes - 1) // self._page_bytes
        across = int((last - first).max(initial=0)) + 1
        every = first[:, None] + np.arange(across)
        return distinct(every[every <= last[:, None]])
