"""`NativeRows`: rows looked up without Python between ids and rows, read by the thread that wants them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.kernels.rows import Wide, check_wide, is_bfloat16
from weightpager.runtime.paging.reads.failures import own_read_error
from weightpager.runtime.rows.row_memory import RowMemory
from weightpager.runtime.rows.row_pages import AT_ONCE, RowReads
from weightpager.store import most_pages


@dataclass(frozen=True)
class RowFiles:
    """Where a table's pages lie in files.

    Attributes:
        first: number of its first page.
        page_bytes: bytes of a page.
        ids: uint8 [pages, 32], what each should be.
        extents: pages that follow each other: the first, counted from the table's first one, descriptor, and offset.
        reads: reads the pages.
    """

    first: int
    page_bytes: int
    ids: npt.NDArray[np.uint8]
    extents: list[tuple[int, int, int]]
    reads: RowReads

    @classmethod
    def of(cls, first: int, count: int, page_bytes: int, reads: RowReads) -> RowFiles | None:
        """Where so many pages lie; None where only the store can read them, or without the native module."""
        pages = np.arange(first, first + count)
        sources = None if reads.pager.own_reads is None else reads.store.sources(pages)
        if sources is None:
            return None
        follows = (np.diff(sources.descriptors) == 0) & (np.diff(sources.offsets) == page_bytes)
        begins = np.flatnonzero(np.concatenate([[True], ~follows]))
        files, offsets = sources.descriptors[begins], sources.offsets[begins]
        extents = list(zip(begins.tolist(), files.tolist(), offsets.tolist(), strict=True))
        return cls(first, page_bytes, reads.store.index.ids[first : first + count], extents, reads)


class NativeRows:
    """Looks rows up in a memory and reads those that it lacks, as `RowCache` does without it.

    Attributes:
        lookup: the native one. As a context it keeps others from the memory and the tally, as its look-ups do. Python
            code around its lock would leave it taken if Ctrl-C came there.

    Args:
        memory: the table's rows in memory.
        tally: int64 [5]: look-ups, hits, faults, bytes and nanoseconds of faults, to be added to.
        files: where the pages lie.
    """

    def __init__(self, memory: RowMemory, tally: npt.NDArray[np.int64], files: RowFiles) -> None:
        from weightpager.kernels import _native

        own_reads = files.reads.pager.own_reads
        assert own_reads is not None
        self._kept = memory, tally, files  # native code has addresses of what these own
        self._columns = memory.row_bytes - 2
        self._reads = files.reads
        self.lookup = _native.RowLookup(
            own_reads,
            **memory.addresses(),
            tally=tally.ctypes.data,
            ids=files.ids.ctypes.data,
            first_page=files.first,
            page_bytes=files.page_bytes,
            most=most_pages(files.page_bytes),
            bytes_at_once=AT_ONCE,
            extents=files.extents,
        )

    def look_up(self, ids: npt.NDArray[np.int64], out: Wide) -> bool:
        """As `RowCache.look_up`. Returns False where a row isn't in the table."""
        check_wide(out, len(ids), self._columns)
        ids = np.ascontiguousarray(ids, np.int64)
        reads = self._reads
        outcome = self.lookup.look_up(
            ids.ctypes.data, len(ids), out.ctypes.data, is_bfloat16(out), reads.read_timeout, reads.pager.reads_ended
        )
        if outcome is None:
            return False
        failure, number, page, read = outcome
        if read:
            reads.store.count(read)
        if failure:
            raise own_read_error(failure, number, page, reads.read_timeout, "rows of a table")
        return True
