"""The tables of ``README.md``, from ``docs/demo.json``, ``docs/device.json`` and ``docs/results.json``.

A table stands between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is written by hand around it stays.

    python -m benchmarks.readme
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.device import measured
from benchmarks.report import results_file, winners
from benchmarks.report.device import processes
from benchmarks.report.tables import table
from weightpager.config import format_size
from weightpager_lab.demo.result import Resident

ROOT = Path(__file__).resolve().parent.parent

_LEFT_OUT = (
    "dense in int2",
    "dense in int3",
    "dense in int8",
    "own sparse int4 per task, all resident",
    "own sparse int4 per task, all reloaded",
)
"""Rows of the demo that nobody would choose: they are less accurate, larger or slower than one that is shown."""

_HEADLINES = (winners.WHOLE, winners.STRICT, winners.WEIGHTS, winners.PROCESS)
"""Columns of contests; the results have more."""


_PROCESSES: dict[measured.Section, tuple[str, ...]] = {
    "texts": ("native_tasks", "torch", "onnx_int8", "onnx_sessions_int8"),
    "decoder": (
        "native half-16k.bundle",
        "native all-16k.bundle",
        "native half.bundle",
        "native all.bundle",
        "llama.cpp SmolLM2-135M-Instruct.Q4_1-as-Q4_0.gguf",
    ),
}
"""The rows of `benchmarks.device` that a reader compares first."""


def main(
    readme: Annotated[Path, typer.Option(help="The page whose tables are written anew.")] = ROOT / "README.md",
) -> None:
    """Write the tables."""
    readme.write_text(filled(readme.read_text(encoding="utf-8"), tables(ROOT / "docs")), encoding="utf-8")


def tables(docs: Path) -> dict[str, str]:
    """Each table by its name, from the measured figures in a folder."""
    demo = json.loads((docs / "demo.json").read_text(encoding="utf-8"))
    rows = measured.read(docs / "device.json")
    return {
        "demo": demo_table([Resident(**row) for row in demo["memory"]], demo["figures"]),
        "processes": processes({section: _few(rows[section], names) for section, names in _PROCESSES.items()}),
        "contests": winners.headlines(results_file.read(docs / "results.json").contests, _HEADLINES)
        + "\n\n–: not measured.",
    }


def _few(found: measured.Measured, names: tuple[str, ...]) -> measured.Measured:
    return found.model_copy(update={"rows": {name: found.rows[name] for name in names}})


def demo_table(rows: list[Resident], figures: Mapping[str, float]) -> str:
    """What the demo compares, the least memory first; **bold** where it is ours."""
    shown = sorted((row for row in rows if row.name not in _LEFT_OUT), key=lambda row: (not row.ours, row.bytes))
    head = ["", "weights in memory", "of these, blocks", "mean accuracy", "a switch reads", "row faults add to a text"]
    return table(head, [_demo_line(row, row.row_faults(figures)) for row in shown])


def _demo_line(row: Resident, faults: float | None) -> list[str]:
    weight = "**" if row.ours else ""
    name, size = (f"{weight}{text}{weight}" for text in (row.name, format_size(row.bytes)))
    return [name, size, format_size(row.paged_bytes), f"{row.mean_metric:.3f}", _switch(row), _milliseconds(faults)]


def _milliseconds(faults: float | None) -> str:
    return "nothing" if faults is None else f"{faults:.1f} ms"


def _switch(row: Resident) -> str:
    if not row.mean_bytes_per_switch:
        return "nothing"
    time = "" if row.ms_per_switch is None else f", {row.ms_per_switch:.1f} ms"
    return format_size(row.mean_bytes_per_switch) + time


def filled(page: str, found: dict[str, str]) -> str:
    """The page with these tables in their places.

    Raises:
        ValueError: the page has no place for one.
    """
    for name, text in found.items():
        place = re.compile(rf"(?<=<!-- {name} -->\n).*(?=<!-- end of {name} -->)", re.DOTALL)
        if len(place.findall(page)) != 1:
            raise ValueError(f"expected a place for the table {name!r}, found none")
        page = place.sub(text.replace("\\", "\\\\") + "\n", page)
    return page


if __name__ == "__main__":
    typer.run(main)
