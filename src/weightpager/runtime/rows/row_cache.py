"""`RowCache`: one table, looked up: rows that are in memory, and those that are read for a batch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import row_memory
from weightpager.bundle.format.row_table import RowTable
from weightpager.interrupts import Condition
from weightpager.kernels.rows import Wide, widen_rows
from weightpager.runtime.budget import split_rows
from weightpager.runtime.rows.row_memory import NativeRows, RowFiles, RowMemory
from weightpager.runtime.rows.row_pages import ReadRows, RowPages, RowReads

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class RowCounts:
    """What look-ups came to.

    Attributes:
        lookups: rows that were looked up.
        hits: look-ups that found their row in memory.
        faults: rows that were read for a batch; several look-ups of a batch may want the same one.
        bytes: bytes of the whole pages that were read.
        nanoseconds: that look-ups took to read what memory lacked; no part of what makes counts equal.
    """

    lookups: int = 0
    hits: int = 0
    faults: int = 0
    bytes: int = 0
    nanoseconds: int = field(default=0, compare=False)

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(*(getattr(self, count.name) + getattr(other, count.name) for count in fields(self)))

    @property
    def hit_rate(self) -> float:
        """Share of the look-ups that found their row in memory; 1 of none."""
        return self.hits / self.lookups if self.lookups else 1.0


class RowCache:
    """Looks rows of one table up. Safe to use from several threads.

    The lock is never kept while storage works, and no row is pinned: what a batch lacks is read into memory of its own
    and widened from there, before rows that are kept replace others. So a batch may want more rows than there is room
    for, and nothing that happens to the memory meanwhile can make it wrong.

    Args:
        table: the table in the bundle.
        pages: reads its rows from their pages.
        slots: rows that may be in memory.
        files: that hold the pages, where the thread that looks rows up may read them itself.
    """

    def __init__(self, table: RowTable, pages: RowPages, slots: int, files: RowFiles | None = None) -> None:
        self.entry = table.entry
        self._places = table.places
        self._pages = pages
        self._memory = RowMemory(table.places, table.entry.row_bytes, slots)
        self._tally = np.zeros(5, np.int64)
        self._native = None if files is None else NativeRows(self._memory, self._tally, files)
        # Of the memory and the tally.
        self._lock: AbstractContextManager[object] = Condition() if self._native is None else self._native.lookup

    @property
    def rows(self) -> int:
        """How many rows the table has."""
        return self.entry.rows

    @property
    def columns(self) -> int:
        """How many numbers a row has."""
        return self.entry.columns

    @property
    def counts(self) -> RowCounts:
        """Counts of all look-ups so far."""
        with self._lock:
            return RowCounts(*self._tally.tolist())

    @property
    def resident(self) -> int:
        """Rows in memory."""
        return len(self._memory)

    @property
    def slots(self) -> int:
        """Rows that may be in memory."""
        return self._memory.slots

    def fill(self) -> None:
        """Read the most used rows, as many as there is room for. Errors are those of `look_up`."""
        with self._lock:
            wanted = np.argsort(self._places, kind="stable")[: self._memory.slots]
            wanted = wanted[self._memory.absent(wanted)]
        for read in self._pages.read(self._places[wanted].astype(np.int64)):
            with self._lock:
                self._keep(wanted[read.start : read.end], read, trial=False)
        with self._lock:
            self._memory.age_by_place()

    def look_up(self, ids: Ids, out: Wide) -> None:
        """Write the rows ``ids``, int64 [n], to ``out`` [n, columns], contiguous: float32, or bfloat16 as uint16.

        Raises:
            IndexError: a row isn't in the table.
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be.
            StoreTimeoutError: storage hangs.
            EngineClosedError: rows are missing, and the engine has been closed.
        """
        if self._native is not None:
            if not self._native.look_up(ids, out):
                raise self._out_of_range()
            return
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.entry.rows:
            raise self._out_of_range()
        with self._lock:
            slots = self._memory.look_up(ids)
            hits = np.flatnonzero(slots >= 0)
            widen_rows(self._memory.stored, slots[hits] * self.entry.row_bytes, hits, out)
            self._tally[:2] += len(ids), len(hits)
        if len(hits) < len(ids):
            start = time.perf_counter_ns()
            self._fault(ids, np.flatnonzero(slots < 0), out)
            with self._lock:
                self._tally[4] += time.perf_counter_ns() - start

    def all(self) -> npt.NDArray[np.float32]:
        """The whole table, float32 [rows, columns], in memory of its own. Errors are those of `look_up`."""
        ids = np.arange(self.entry.rows)
        out = np.empty((len(ids), self.entry.columns), np.float32)
        self._fault(ids, ids, out, keep=False)
        return out

    def resize(self, slots: int) -> None:
        """Keep so many rows at most."""
        with self._lock:
            self._memory.resize(slots)

    def _fault(self, ids: Ids, missing: Ids, out: Wide, *, keep: bool = True) -> None:
        """Read the rows that a batch lacks, at the positions ``missing`` of ``ids``."""
        rows, which = np.unique(ids[missing], return_inverse=True)
        places = self._places[rows].astype(np.int64)
        order = np.argsort(places)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        ranks = rank[which.reshape(-1)]
        rows = rows[order]
        for read in self._pages.read(places[order]):
            positions = np.flatnonzero((ranks >= read.start) & (ranks < read.end))
            widen_rows(read.stored, read.offsets[ranks[positions] - read.start], missing[positions], out)
            with self._lock:
                self._tally[2:4] += read.end - read.start, len(read.stored)
                if keep:
                    self._keep(rows[read.start : read.end], read)

    def _out_of_range(self) -> IndexError:
        return IndexError(f"index out of range: expected rows from 0 to {self.entry.rows - 1} of {self.entry.name}")

    def _keep(self, rows: npt.NDArray[Any], read: ReadRows, *, trial: bool = True) -> None:
        stored = read.stored[read.offsets[:, None] + np.arange(self.entry.row_bytes)]
        self._memory.insert(rows, stored, trial=trial)


class RowTables:
    """Tables by the canonical name of their parameter.

    Attributes:
        caches: one for each table.
        room: bytes of memory for rows.
    """

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
            table.entry.name: _cache(bundle, table, slots, reads)
            for table, slots in zip(tables.values(), split_rows(self._entries, room), strict=True)
        }

    @property
    def counts(self) -> RowCounts:
        """Counts of the look-ups in all tables so far."""
        return reduce(RowCounts.__add__, (cache.counts for cache in self.caches.values()), RowCounts())

    @property
    def resident(self) -> int:
        """Rows in memory."""
        return sum(cache.resident for cache in self.caches.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of memory that the rows take."""
        return sum(cache.resident * row_memory(cache.entry) for cache in self.caches.values())

    @property
    def rows(self) -> int:
        """Rows that there are."""
        return sum(entry.rows for entry in self._entries)

    def fill(self) -> None:
        """Read the most used rows. Errors are those of `RowCache.look_up`."""
        for cache in self.caches.values():
            cache.fill()

    def resize(self, room: int) -> None:
        """Use so many bytes of memory for rows."""
        self.room = room
        for cache, slots in zip(self.caches.values(), split_rows(self._entries, room), strict=True):
            cache.resize(slots)


def _cache(bundle: Bundle, table: RowTable, slots: int, reads: RowReads) -> RowCache:
    first, page_bytes = bundle.manifest.pages + table.first, bundle.page_bytes
    pages = RowPages(table.entry, first, page_bytes, reads.read)
    return RowCache(table, pages, slots, RowFiles.of(first, table.entry.pages(page_bytes), page_bytes, reads))
