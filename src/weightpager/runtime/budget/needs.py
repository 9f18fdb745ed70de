"""How a budget is split: arithmetic alone, so that it can be asked for without an arena.

    budget = fixed + rows + tables + slots × page_bytes + rest

* fixed: parameters, tables as the bundle has them, KV caches, and staging.
* rows: of embedding tables. The least of them always have room; more get what all else leaves.
* tables: expanded block tables. One task's always have room, and on a device those of all tasks. Those that tasks in
  use take together come before pages; all others come after.
* slots: the pages that have room beside these, at most all pages.
* rest: less than a page, or what nobody has a use for.
"""

from __future__ import annotations

from dataclasses import dataclass

from weightpager.bundle.footprint import Footprint


@dataclass(frozen=True)
class Split:
    """Where a budget goes.

    Attributes:
        fixed: bytes that don't depend on the budget.
        rows: bytes of embedding rows.
        tables: bytes of expanded block tables.
        slots: pages that may be in the arena.
        page_bytes: bytes of a page.
    """

    fixed: int
    rows: int
    tables: int
    slots: int
    page_bytes: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.fixed + self.rows + self.tables + self.slots * self.page_bytes


@dataclass(frozen=True)
class Needs:
    """What a bundle, and the engine that runs it, ask of a budget.

    Where a method takes ``tables``, these are the bytes of expanded block tables that tasks in use take together. What
    always has room for tables is part of them.

    Attributes:
        pages: number of the bundle's pages; more slots are never useful.
        least_pages: number of pages of its smallest task.
        page_bytes: bytes of a page.
        footprint: bytes that are in memory whatever is in the arena.
        more_rows: bytes of the embedding rows beyond those of ``footprint`` that a large budget holds.
        kv_reserve: bytes that are left to the caller's KV caches.
        staging: bytes of the buffers that pages pass through to a device; None where the arena is in the host's memory.
    """

    pages: int
    least_pages: int
    page_bytes: int
    footprint: Footprint
    more_rows: int = 0
    kv_reserve: int = 0
    staging: int | None = None

    @property
    def fixed(self) -> int:
        """Bytes that don't depend on the budget."""
        always = self.footprint
        return always.resident + always.private + always.placement + self.kv_reserve + (self.staging or 0)

    @property
    def least_tables(self) -> int:
        """Bytes of expanded block tables that always have room."""
        return self.footprint.largest_table if self.staging is None else self.footprint.all_tables

    def split(self, budget: int, *, tables: int = 0, capacity: int | None = None, taken: int = 0) -> Split:
        """Split a budget. Where it is too small there are no slots, and the other parts may exceed it.

        Args:
            budget: bytes.
            tables: of the tasks in use.
            capacity: slots that the arena may have; None for as many as there are pages.
            taken: slots that take memory whether they are used or not.
        """
        room, used = self.room(budget), self._more_tables(tables)
        most = self.pages if capacity is None else min(self.pages, capacity)
        slots = max(0, min(most, (room - used) // self.page_bytes))
        left = room - max(slots, taken) * self.page_bytes
        more_tables = max(used, min(left, self._most_tables))
        return self._parts(self._more_rows(budget), more_tables, slots)

    def rows(self, budget: int) -> int:
        """Bytes of embedding rows. They never fall with a larger budget."""
        return self.footprint.rows + self._more_rows(budget)

    def room(self, budget: int) -> int:
        """Bytes that are left to pages, and to tables beyond the least; below zero if the budget is too small."""
        return budget - self._least - self._more_rows(budget)

    def holding(self, pages: int, *, tables: int = 0) -> Split:
        """The smallest split that holds so many pages at once."""
        return self._parts(0, self._more_tables(tables), pages)

    def holding_all(self, pages: int | None = None, *, tables: int = 0) -> Split:
        """The split that nobody has a use for more than: all rows and tables, and all pages or ``pages`` of them."""
        more_tables = max(self._most_tables, self._more_tables(tables))
        return self._parts(self.more_rows, more_tables, self.pages if pages is None else pages)

    @property
    def _least(self) -> int:
        """Bytes without any page, and with the least rows and tables."""
        return self._parts(0, 0, 0).total

    @property
    def _most_tables(self) -> int:
        return self._more_tables(self.footprint.all_tables)

    def _more_tables(self, tables: int) -> int:
        return max(0, tables - self.least_tables)

    def _more_rows(self, budget: int) -> int:
        behind = budget - self._least - self.pages * self.page_bytes - self._most_tables
        return min(self.more_rows, max(0, behind))

    def _parts(self, more_rows: int, more_tables: int, slots: int) -> Split:
        """The split with so much more than the least rows and tables."""
        rows, tables = self.footprint.rows + more_rows, self.least_tables + more_tables
        return Split(self.fixed, rows, tables, slots, self.page_bytes)
