"""Rows that are read between two switches, before a budget is known."""

from __future__ import annotations

import pytest

from weightpager.bundle.format.row_table import CURVE, RowTableEntry
from weightpager.runtime.budget import TEXTS_PER_SWITCH, usual_faults


def table(lookups: float, uses: dict[str, list[float]]) -> RowTableEntry:
    return RowTableEntry(name="t", rows=6400, columns=8, lookups=lookups, uses=uses)


def test_all_tables_count_by_the_mean_of_their_curves() -> None:
    halves = {"a": [0.0] + [0.9] * CURVE, "b": [0.0] + [0.5] * CURVE}  # after the first 1/64 nothing changes
    even: dict[str, list[float]] = {}
    assert usual_faults([table(40, halves)]) == pytest.approx(TEXTS_PER_SWITCH * 40 * 0.3)
    assert usual_faults([table(40, halves), table(20, even)]) == pytest.approx(TEXTS_PER_SWITCH * (12 + 20 * 0.75))
    assert usual_faults([]) == 0
