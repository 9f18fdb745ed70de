"""`RowTables`: all tables of an open bundle whose rows are in pages, and the memory that they share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import row_memory
from weightpager.bundle.format.row_table import RowTable
from weightpager.runtime.budget.row_share import split_rows
from weightpager.runtime.rows.native_rows import RowFiles
from weightpager.runtime.rows.row_cache import RowCache, RowCounts
from weightpager.runtime.rows.row_pages import RowPages, RowReads


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
