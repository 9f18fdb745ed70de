"""Tables that are only looked up: which rows are in memory, and how the others come.

Native code keeps rows, and says which go for others (``csrc/rows``). Without it none is kept: whatever is looked up is
read each time, which is slow, and takes no more memory than the budget says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import row_memory
from weightpager.bundle.format.row_table import RowTable
from weightpager.distinct import distinct
from weightpager.interrupts import Condition
from weightpager.kernels.choice import NATIVE
from weightpager.kernels.rows import Wide, check_wide, is_bfloat16, widen_rows
from weightpager.machine.storage import address_space, aligned_memory
from weightpager.runtime.budget import split_rows
from weightpager.runtime.paging.load import own_read_error
from weightpager.runtime.paging.pager import Pager
from weightpager.runtime.row_report import RowReport
from weightpager.store import VerifyingStore, most_pages

if NATIVE:
    from weightpager.kernels import _native

Ids = npt.NDArray[np.int64]

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

    def pages(self, numbers: Ids, page_bytes: int) -> npt.NDArray[np.uint8]:
        """Pages, ascending, one behind the other; read by threads of the pager. Errors are those of `Pager.read`."""
        buffer = np.frombuffer(aligned_memory(len(numbers) * page_bytes), np.uint8)
        self.pager.read(self.store, numbers, buffer.reshape(-1, page_bytes), self.read_timeout)
        return buffer

    def of_table(
        self, first: int, count: int, page_bytes: int
    ) -> _native.RowFiles | Callable[[bytes], npt.NDArray[np.uint8]]:
        """What reads a table's pages for native code: from files without Python between, else `pages`."""
        numbers = np.arange(first, first + count)
        sources = self.store.sources(numbers)
        if sources is None or self.pager.own_reads is None:
            return lambda packed: self.pages(np.frombuffer(packed, np.int64) + first, page_bytes)
        follows = (np.diff(sources.descriptors) == 0) & (np.diff(sources.offsets) == page_bytes)
        begins = np.flatnonzero(np.concatenate([[True], ~follows]))
        files, offsets = sources.descriptors[begins], sources.offsets[begins]
        return _native.RowFiles(
            self.pager.own_reads,
            ids=self.store.index.ids[first : first + count],
            first_page=first,
            page_bytes=page_bytes,
            most=most_pages(page_bytes),
            extents=list(zip(begins.tolist(), files.tolist(), offsets.tolist(), strict=True)),
        )


class RowCache:
    """Looks rows of one table up. Safe to use from several threads."""

    def __init__(self, table: RowTable, first: int, page_bytes: int, slots: int, reads: RowReads) -> None:
        self.entry = table.entry
        self._places = np.ascontiguousarray(table.places)
        self._first = first
        self._page_bytes = page_bytes
        self._reads = reads
        self._tally = np.zeros(5, np.int64)  # look-ups, hits, faults, bytes and nanoseconds of faults
        self._state = np.array([min(slots, self.rows), 0, 0], np.int64)  # slots, how many are filled, the latest tick
        self._native = self._keep_rows() if NATIVE else None
        self._lock = Condition() if self._native is None else self._native  # of all that changes

    @property
    def rows(self) -> int:
        return self.entry.rows

    @property
    def columns(self) -> int:
        return self.entry.columns

    @property
    def slots(self) -> int:
        return int(self._state[0])

    @property
    def report(self) -> RowReport:
        with self._lock:
            resident = int(self._state[1])
            lookups, hits, faults, read, nanoseconds = self._tally.tolist()
        size = resident * row_memory(self.entry)
        return RowReport(self.rows, resident, size, lookups, hits, faults, read, nanoseconds / 1e9)

    def fill(self) -> None:
        """Read the most used rows, as many as there is room for. Errors are those of `look_up`."""
        if self._native is not None:
            self._check(self._native.fill(self._reads.read_timeout, self._reads.pager.reads_ended))

    def look_up(self, ids: Ids, out: Wide) -> None:
        """Write the rows ``ids``, int64 [n], to ``out`` [n, columns], contiguous: float32, or bfloat16 as uint16.

        Raises:
            IndexError: a row isn't in the table.
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be.
            StoreTimeoutError: storage hangs.
            EngineClosedError: rows are missing, and the engine has been closed.
        """
        check_wide(out, len(ids), self.columns)
        ids = np.ascontiguousarray(ids, np.int64)
        if self._native is None:
            outcome = self._look_up_plainly(ids, out)
        else:
            timeout, ended = self._reads.read_timeout, self._reads.pager.reads_ended
            outcome = self._native.look_up(ids.ctypes.data, len(ids), out.ctypes.data, is_bfloat16(out), timeout, ended)
        if outcome is None:
            name, last = self.entry.name, self.rows - 1
            raise IndexError(f"index out of range: expected rows from 0 to {last} of {name}")
        self._check(outcome)

    def all(self) -> npt.NDArray[np.float32]:
        """The whole table, float32 [rows, columns], in memory of its own. Errors are those of `look_up`."""
        out = np.empty((self.rows, self.columns), np.float32)
        if self._native is None:
            self._read_plainly(np.arange(self.rows), out)
        else:
            timeout, ended = self._reads.read_timeout, self._reads.pager.reads_ended
            self._check(self._native.read_all(out.ctypes.data, timeout, ended))
        return out

    def resize(self, slots: int) -> None:
        if self._native is not None:
            self._native.resize(slots)

    def _keep_rows(self) -> _native.RowLookup:
        """Memory for rows, and who keeps them there. Raises `OSError` if the machine refuses address space."""
        row_bytes, count = self.entry.row_bytes, self.rows
        try:
            memory = address_space(count * row_bytes)
        except OSError:  # for all of them; then for those that are to be kept
            count = self.slots
            memory = address_space(max(1, count * row_bytes))
        self._stored = np.frombuffer(memory, np.uint8, count * row_bytes)
        self._slot_of = np.full(self.rows, -1, np.int32)
        self._row_in = np.zeros(count, np.int32)
        last_use, stay = np.zeros(count, np.uint32), np.zeros(count, np.uint8)
        self._kept = memory, last_use, stay  # native code has their addresses
        return _native.RowLookup(
            places=self._places.ctypes.data,
            wide=self._places.itemsize == 4,
            rows=self.rows,
            row_bytes=row_bytes,
            capacity=count,
            stored=self._stored.ctypes.data,
            slot_of=self._slot_of.ctypes.data,
            row_in=self._row_in.ctypes.data,
            last_use=last_use.ctypes.data,
            stay=stay.ctypes.data,
            state=self._state.ctypes.data,
            tally=self._tally.ctypes.data,
            page_bytes=self._page_bytes,
            bytes_at_once=AT_ONCE,
            read=self._reads.of_table(self._first, self.entry.pages(self._page_bytes), self._page_bytes),
        )

    def _check(self, outcome: tuple[int, int, int, int]) -> None:
        """Count what native code has read, and raise what kept a page from coming."""
        failure, number, page, read = outcome
        if read:
            self._reads.store.count(read)
        if failure:
            raise own_read_error(failure, number, page, self._reads.read_timeout, "rows of a table")

    def _look_up_plainly(self, ids: Ids, out: Wide) -> tuple[int, int, int, int] | None:
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.rows:
            return None
        start = time.perf_counter_ns()
        self._read_plainly(ids, out)
        with self._lock:
            self._tally[[0, 4]] += len(ids), time.perf_counter_ns() - start if len(ids) else 0
        return 0, 0, 0, 0

    def _read_plainly(self, ids: Ids, out: Wide) -> None:
        """Read rows and widen them, a piece at a time."""
        order = np.argsort(self._places[ids], kind="stable")
        row, page = self.entry.row_bytes, self._page_bytes
        most = max(1, AT_ONCE // (page * (1 + -(-row // page))))
        for start in range(0, len(order), most):
            at = order[start : start + most]
            begin = self._places[ids[at]].astype(np.int64) * row
            first, last = begin // page, (begin + row - 1) // page
            every = first[:, None] + np.arange(int((last - first).max()) + 1)
            pages = distinct(every[every <= last[:, None]])
            stored = self._reads.pages(pages + self._first, page)
            # A row's pages follow each other in memory as they do in the table.
            widen_rows(stored, np.searchsorted(pages, first) * page + begin % page, at, out)
            with self._lock:
                self._tally[2:4] += len(distinct(begin)), len(stored)


class RowTables:
    """Tables by the canonical name of their parameter."""

    def __init__(self, bundle: Bundle, tables: Mapping[str, RowTable], room: int, reads: RowReads) -> None:
        """Nothing is in memory.

        Args:
            bundle: has the tables.
            tables: those whose rows are looked up here.
            room: bytes of memory for rows.
            reads: reads pages by number, those of rows behind those of blocks.

        Raises:
            OSError: the machine refuses address space.
        """
        self.room = room
        self._entries = [table.entry for table in tables.values()]
        self.caches: Mapping[str, RowCache] = {
            table.entry.name: RowCache(table, bundle.manifest.pages + table.first, bundle.page_bytes, slots, reads)
            for table, slots in zip(tables.values(), split_rows(self._entries, room), strict=True)
        }

    @property
    def report(self) -> RowReport | None:
        """What is known of all tables together; None without any."""
        return reduce(RowReport.__add__, (cache.report for cache in self.caches.values())) if self.caches else None

    def fill(self) -> None:
        """Read the most used rows. Errors are those of `RowCache.look_up`."""
        for cache in self.caches.values():
            cache.fill()

    def resize(self, room: int) -> None:
        """Use so many bytes of memory for rows."""
        if room == self.room:
            return
        self.room = room
        for cache, slots in zip(self.caches.values(), split_rows(self._entries, room), strict=True):
            cache.resize(slots)
