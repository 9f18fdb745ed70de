"""How a budget is shared between rows of tables and pages of blocks, and rows between tables: pure.

Whatever there is, rows get the least of them, and blocks the pages of the largest task, so that every task runs. What
is left goes where a byte saves the most time, as far as is known before anything runs:

* A byte of rows saves the faults of the next most used rows: look-ups of a text × texts between two switches × their
  share of the look-ups by the tables' use curves × the time of a read, as every cold row is a read of its own.
* A byte of blocks saves a part of what an average switch loads: all of it where every task's pages fit, nothing where
  only the largest task's do, and evenly between.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import least_rows, row_memory
from weightpager.bundle.format.manifest import transitions_of
from weightpager.bundle.format.row_table import CURVE, RowTableEntry
from weightpager.distinct import distinct
from weightpager.store.read_plan import GROUP_BYTES, StorageModel

TEXTS_PER_SWITCH = 8
"""Texts that are taken to be read between two switches. Twice as many double what a byte of rows saves."""

USUAL_SHARE = 1 / 4
"""Share of a table's rows that is taken to be in memory before any budget is known."""


@dataclass(frozen=True)
class RowShare:
    """What rows get beyond the least that they always have.

    Room goes to the pages of the largest task first, then to hot rows, to all other pages, to expanded block tables,
    and last to all other rows.

    Attributes:
        hot_rows: bytes of the rows that save more time than pages do.
        all_rows: bytes of all rows beyond the least, hot ones included.
        largest_task: bytes of the pages of the largest task.
        all_pages: bytes of all pages.
    """

    hot_rows: int = 0
    all_rows: int = 0
    largest_task: int = 0
    all_pages: int = 0

    def of(self, room: int, tables: int = 0) -> int:
        """Bytes for rows; they never fall with more room.

        Args:
            room: bytes that a budget leaves to rows, pages and expanded block tables.
            tables: bytes of these tables.
        """
        left = room - self.largest_task
        if left <= 0:
            return 0
        hot = min(self.hot_rows, left)
        behind_pages = left - hot - (self.all_pages - self.largest_task)
        return hot + min(self.all_rows - self.hot_rows, max(0, behind_pages - tables))

    def beside(self, pages: int) -> int:
        """What rows get in the smallest budget that holds so many bytes of pages."""
        return self.hot_rows if pages > self.largest_task else 0


NO_MORE_ROWS = RowShare()
"""Rows have what they have, whatever the budget."""


def row_share(bundle: Bundle) -> RowShare:
    """How a bundle's tables share a budget with its blocks, on the storage that `StorageModel` takes for granted."""
    entries = bundle.manifest.row_tables
    if not entries:
        return NO_MORE_ROWS
    storage = StorageModel()
    page = bundle.page_bytes
    largest_task = max(len(bundle.pages_of(task)) for task in bundle.tasks) * page
    all_pages = len(bundle.pages) * page
    save = _switch_seconds(bundle, storage) / (all_pages - largest_task) if all_pages > largest_task else 0.0
    read = storage.seconds(1, page) * TEXTS_PER_SWITCH
    segments = [segment for entry in entries for segment in _segments(entry)]
    hot = sum(segment.bytes for segment in segments if segment.lookups * read > save * segment.bytes)
    return RowShare(hot, sum(segment.bytes for segment in segments), largest_task, all_pages)


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


def _switch_seconds(bundle: Bundle, storage: StorageModel) -> float:
    """Mean time to load what the next task needs and the last one doesn't, read in groups."""
    rate = transitions_of(bundle.manifest).switch_rate()
    needs: npt.NDArray[np.float64] = np.zeros((len(bundle.tasks), len(bundle.pages)))
    for number, task in enumerate(bundle.tasks):
        needs[number, bundle.pages_of(task)] = 1
    loaded = (needs.sum(1)[None, :] - needs @ needs.T) * bundle.page_bytes  # [last, next]
    total = float((rate * loaded * (1 - np.eye(len(rate)))).sum())
    return storage.seconds(0, int(total)) + total / GROUP_BYTES * storage.seconds_per_read
