"""The table of what the demo compares, from ``docs/demo.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.tables import table
from weightpager.config import format_size
from weightpager_lab.demo.result import Resident

_LEFT_OUT = (
    "dense in int2",
    "dense in int3",
    "dense in int8",
    "own sparse int4 per task, all resident",
    "own sparse int4 per task, all reloaded",
)
"""Rows that nobody would choose: they are less accurate, larger or slower than one that is shown."""


@dataclass(frozen=True)
class Demo:
    """What of ``weightpager demo --json`` is shown: ways to serve all tasks, figures by flat key, what to take."""

    rows: Mapping[str, Resident]
    figures: Mapping[str, float]
    budgets: str = ""


def read(file: Path) -> Demo:
    """What ``weightpager demo --json`` wrote into a file."""
    found = json.loads(file.read_text(encoding="utf-8"))
    rows = [Resident(**row) for row in found["memory"]]
    return Demo({row.name: row for row in rows}, found["figures"], found["budgets"])


def demo_table(rows: Sequence[Resident], figures: Mapping[str, float]) -> str:
    """What the demo compares, the least memory first; **bold** where it is ours."""
    shown = sorted((row for row in rows if row.name not in _LEFT_OUT), key=lambda row: (not row.ours, row.bytes))
    head = ["", "weights in memory", "of these, blocks", "mean accuracy", "a switch reads", "row faults add to a text"]
    return table(head, [_line(row, row.row_faults(figures)) for row in shown])


def _line(row: Resident, faults: float | None) -> list[str]:
    weight = "**" if row.ours else ""
    name, size = (f"{weight}{text}{weight}" for text in (row.name, format_size(row.bytes)))
    return [name, size, format_size(row.paged_bytes), f"{row.mean_metric:.3f}", _switch(row), milliseconds(faults)]


def milliseconds(faults: float | None) -> str:
    """What row faults add to a text."""
    return "nothing" if faults is None else f"{faults:.1f} ms"


def _switch(row: Resident) -> str:
    if not row.mean_bytes_per_switch:
        return "nothing"
    time = "" if row.ms_per_switch is None else f", {row.ms_per_switch:.1f} ms"
    return format_size(row.mean_bytes_per_switch) + time
