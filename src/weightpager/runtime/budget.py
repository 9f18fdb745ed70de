"""What a memory budget must hold, and how it is split among pages, tables, features and rows.

Arithmetic alone, so that it can be asked for without an arena::

    budget = fixed + rows + tables + features + slots × page_bytes + rest

* fixed: parameters, tables as the bundle has them, KV caches, beginnings of prompts, and staging.
* rows: of embedding tables. The least of them always have room. Then come the pages of all tasks and all expanded block
  tables, and more rows get what is left: a page that was evicted is waited for by every switch that needs it, while a
  fault is one of several short reads that are made together.
* features: of pictures that are kept. Those of a few pictures always have room, as they spare whole forwards of the
  picture tower; more come after all pages and tables, and before more rows.
* tables: expanded block tables. One task's always have room, and on a device those of all tasks. Those that tasks in
  use take together come before pages; all others come after.
* slots: the pages that have room beside these, at most all pages.
* rest: less than a page, or what nobody has a use for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import Footprint, footprint, least_rows, most_features, row_memory, whole_rows
from weightpager.bundle.format.row_table import CURVE, RowTableEntry
from weightpager.config import format_enough, format_room
from weightpager.distinct import distinct
from weightpager.errors import BudgetError


@dataclass(frozen=True)
class Split:
    """Where a budget goes.

    Attributes:
        fixed: bytes that don't depend on the budget.
        rows: bytes of embedding rows.
        tables: bytes of expanded block tables.
        slots: pages that may be in the arena.
        page_bytes: bytes of a page.
        features: bytes of pictures' features.
    """

    fixed: int
    rows: int
    tables: int
    slots: int
    page_bytes: int
    features: int = 0

    @property
    def total(self) -> int:
        return self.fixed + self.rows + self.tables + self.features + self.slots * self.page_bytes


@dataclass(frozen=True)
class MemoryNeeds:
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
        more_features: bytes of pictures' features beyond those of ``footprint`` that a large budget holds.
        prefix_cache: bytes for keys and values of prompts' beginnings.
    """

    pages: int
    least_pages: int
    page_bytes: int
    footprint: Footprint
    more_rows: int = 0
    kv_reserve: int = 0
    staging: int | None = None
    more_features: int = 0
    prefix_cache: int = 0

    @property
    def fixed(self) -> int:
        always = self.footprint
        stated = self.kv_reserve + self.prefix_cache + (self.staging or 0)
        return always.resident + always.private + always.placement + stated

    @property
    def waking(self) -> int:
        """Bytes that are read when the bundle wakes, before any page: its parameters."""
        return self.footprint.resident + self.footprint.private

    @property
    def least_tables(self) -> int:
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
        return self._parts(self._more_rows(budget), more_tables, slots, self._more_features(budget))

    def rows(self, budget: int) -> int:
        """Bytes of embedding rows. They never fall with a larger budget."""
        return self.footprint.rows + self._more_rows(budget)

    def room(self, budget: int) -> int:
        """Bytes that are left to pages, and to tables beyond the least; below zero if the budget is too small."""
        return budget - self._least - self._more_features(budget) - self._more_rows(budget)

    def holding(self, pages: int, *, tables: int = 0) -> Split:
        """The smallest split that holds so many pages at once."""
        return self._parts(0, self._more_tables(tables), pages)

    def holding_all(self, pages: int | None = None, *, tables: int = 0) -> Split:
        """The split that nobody has a use for more than: all rows, tables and features, all pages or ``pages``."""
        more_tables = max(self._most_tables, self._more_tables(tables))
        return self._parts(self.more_rows, more_tables, self.pages if pages is None else pages, self.more_features)

    @property
    def _least(self) -> int:
        """Bytes without any page, and with the least rows, tables and features."""
        return self._parts(0, 0, 0).total

    @property
    def _most_tables(self) -> int:
        return self._more_tables(self.footprint.all_tables)

    def _more_tables(self, tables: int) -> int:
        return max(0, tables - self.least_tables)

    def _behind(self, budget: int) -> int:
        """Bytes that are left behind all pages and tables."""
        return max(0, budget - self._least - self.pages * self.page_bytes - self._most_tables)

    def _more_features(self, budget: int) -> int:
        return min(self.more_features, self._behind(budget))

    def _more_rows(self, budget: int) -> int:
        return min(self.more_rows, self._behind(budget) - self._more_features(budget))

    def _parts(self, more_rows: int, more_tables: int, slots: int, more_features: int = 0) -> Split:
        """The split with so much more than the least rows, tables and features."""
        rows, tables = self.footprint.rows + more_rows, self.least_tables + more_tables
        return Split(self.fixed, rows, tables, slots, self.page_bytes, self.footprint.features + more_features)


def needs_of(bundle: Bundle, dtype: str = "auto", rows: int | None = None) -> MemoryNeeds:
    """What a bundle asks of a budget, for tasks that compute in a dtype, and rows, of `EngineConfig`.

    Raises:
        BundleFormatError: a parameter file is damaged.
    """
    always = footprint(bundle, dtype, rows)
    return MemoryNeeds(
        pages=len(bundle.pages),
        least_pages=min(len(bundle.pages_of(name)) for name in bundle.tasks),
        page_bytes=bundle.page_bytes,
        footprint=always,
        more_rows=whole_rows(bundle) - always.rows if rows is None else 0,
        more_features=most_features(bundle) - always.features,
    )


def smallest_budget(bundle: Bundle, task: str | None = None, dtype: str = "auto", rows: int | None = None) -> int:
    """Bytes that hold what is always in memory and the pages of one task; by default of the largest task."""
    most = max(len(bundle.pages_of(name)) for name in ([task] if task else bundle.tasks))
    return needs_of(bundle, dtype, rows).holding(most).total


def largest_budget(bundle: Bundle) -> int:
    """Bytes that an engine without a budget takes: with all pages, all rows, and the tables of all tasks expanded."""
    return needs_of(bundle, rows=whole_rows(bundle)).holding_all().total


def check_fits(bundle: Bundle, task: str, budget: int, dtype: str = "auto", rows: int | None = None) -> None:
    """Refuse a budget, in bytes, that is too small for a task.

    Raises:
        BudgetError: it is too small; the message says the smallest budget that would do.
    """
    least = smallest_budget(bundle, task, dtype, rows)
    if budget < least:
        cannot = f"{task!r} does not fit into {format_room(budget)}"
        raise BudgetError(
            f"{cannot}; the smallest budget that would do is {least} bytes ({format_enough(least)})", least
        )


def too_small(needs: MemoryNeeds, what: str, pages: int, budget: int, *, tables: int = 0) -> BudgetError:
    """The error for a budget that doesn't hold something.

    Args:
        needs: of the bundle.
        what: is to be held, for the message.
        pages: that it takes at once.
        budget: bytes.
        tables: bytes of expanded block tables that tasks in use take with it.
    """
    cannot = f"a budget of {format_room(budget)} ({budget} bytes) is too small. "
    return refusal(cannot, needs, what, pages, tables=tables)


def refusal(reason: str, needs: MemoryNeeds, what: str, pages: int, *, tables: int = 0) -> BudgetError:
    """An error that begins with a reason and goes on with what is needed. Other arguments are those of `too_small`."""
    least = needs.holding(pages, tables=tables)
    of_pages = pages * needs.page_bytes
    extra = {
        "KV caches": needs.kv_reserve,
        "the prefix cache": needs.prefix_cache,
        "staging": needs.staging,
        "rows": least.rows,
        "features": least.features,
    }
    parts = [f"{format_enough(size)} for {purpose}" for purpose, size in extra.items() if size]
    more = f" (with {', '.join(parts)})" if parts else ""
    return BudgetError(
        f"{reason}To hold {what} takes {format_enough(least.total - of_pages)} for resident and private parameters and "
        f"tables{more}, and {format_enough(of_pages)} for {pages} pages. "
        f"The smallest budget that would do is {enough(needs, pages, tables=tables)}.",
        least.total,
    )


def enough(needs: MemoryNeeds, pages: int, *, tables: int = 0) -> str:
    """The smallest budget that holds so many pages at once, in words."""
    least = needs.holding(pages, tables=tables).total
    return f"{least} bytes ({format_enough(least)})"


TEXTS_PER_SWITCH = 8
"""Texts that are taken to be read between two switches."""

USUAL_SHARE = 1 / 4
"""Share of a table's rows that is taken to be in memory before any budget is known."""


def usual_faults(entries: Iterable[RowTableEntry]) -> float:
    """Rows that are read between two switches, each with a page of its own, in a usual budget."""
    return TEXTS_PER_SWITCH * sum(entry.lookups * (1.0 - float(entry.served(USUAL_SHARE))) for entry in entries)


def split_rows(entries: Sequence[RowTableEntry], room: int) -> list[int]:
    """How many rows of each table are kept where all have so many bytes: first the least, then those used the most."""
    rows = [0] * len(entries)
    for number, entry in enumerate(entries):
        rows[number] = min(least_rows(entry), room // row_memory(entry))
        room -= rows[number] * row_memory(entry)
    segments = [(number, segment) for number, entry in enumerate(entries) for segment in _segments(entry)]
    for number, segment in sorted(segments, key=lambda pair: -pair[1].lookups / pair[1].bytes):
        more = min(segment.rows, room // row_memory(entries[number]))
        rows[number] += more
        room -= more * row_memory(entries[number])
    return rows


@dataclass(frozen=True)
class _Segment:
    """Rows of neighbouring places: how many, their bytes in memory, and how often a text looks one of them up."""

    rows: int
    bytes: int
    lookups: float


def _segments(entry: RowTableEntry) -> list[_Segment]:
    """A table's rows beyond the least, in the order of their places."""
    edges = distinct(np.clip(np.arange(CURVE + 1) * entry.rows // CURVE, least_rows(entry), entry.rows))
    served = entry.served(edges / entry.rows)
    size = row_memory(entry)
    return [
        _Segment(int(rows), int(rows) * size, float(uses) * entry.lookups)
        for rows, uses in zip(np.diff(edges), np.diff(served), strict=True)
    ]
