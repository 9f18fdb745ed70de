"""Rows of tables in a budget: how many of each table are in memory, and what those that aren't will cost. Pure.

Whatever there is, rows get the least of them. Then come the pages of all tasks and all expanded block tables, and rows
get what is left: a page that was evicted is waited for by every switch that needs it, while a fault is one of several
short reads that are made together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weightpager.bundle.footprint import least_rows, row_memory
from weightpager.bundle.format.row_table import CURVE, RowTableEntry
from weightpager.distinct import distinct

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
