"""The figures of ``README.md``: its table of whole processes, and the three above it.

They come from ``docs/device.json``, ``docs/demo.json``, ``docs/accuracy.json`` and ``docs/results.json``, and stand
between ``<!-- NAME -->`` and ``<!-- end of NAME -->``; what is written by hand around them stays.

    python -m benchmarks.readme
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.accuracy.rows import Point, find, gather
from benchmarks.accuracy.rows import read as read_accuracy
from benchmarks.assistant import NAME as ASSISTANT
from benchmarks.device import measured
from benchmarks.report import demo, results_file
from benchmarks.report.device import seconds, short, spread
from benchmarks.report.tables import table
from benchmarks.report.winners import switch_ms
from weightpager.config import format_size
from weightpager_lab.demo.page import frontier
from weightpager_lab.demo.result import ROW_FAULTS

ROOT = Path(__file__).resolve().parent.parent

_QUARTER, _ALL_BLOCKS = ("A", 0.07, "ours_int4", "finetune"), ("A", 0.281, "all_blocks_int4", "finetune")
_ONE_MASK = ("A", 0.07, "shared_mask_int4", "finetune")
"""Text tasks in int4: a quarter of the blocks, all, and a quarter that is the same for all tasks."""

_NOT_DRAWN = ("dense in bfloat16",)
"""Far to the right of all others."""

_NOT_MEASURED = "–"


@dataclass(frozen=True)
class _Process:
    """A row of the table.

    Attributes:
        title: for people.
        section, row: where its figures lie in ``docs/device.json``.
        point: domain, fraction, method and recovery of what is as accurate; none if it wasn't measured.
        has_rows: whether embedding rows are read on demand.
    """

    title: str
    section: measured.Section
    row: str
    point: tuple[str, float, str, str] | None = None
    has_rows: bool = False


_PROCESSES = (
    _Process("texts: **weightpager**, a quarter of blocks", "texts", "native_tasks", _QUARTER, has_rows=True),
    _Process("texts: weightpager, all blocks", "texts", "native_all_blocks", _ALL_BLOCKS, has_rows=True),
    _Process("texts: ONNX Runtime, int8", "texts", "onnx_int8"),
    _Process(
        "decoder: **weightpager**, half of blocks",
        "decoder",
        "native half.bundle",
        ("D", 0.14, "ours_int4", "finetune"),
    ),
    _Process("decoder: weightpager, all blocks", "decoder", "native all.bundle", ("D", 0.281, "int4", "none")),
    _Process("decoder: llama.cpp, Q4_0", "decoder", "llama.cpp SmolLM2-135M-Instruct.Q4_1-as-Q4_0.gguf"),
)


def main(
    readme: Annotated[Path, typer.Option(help="The page whose figures are written anew.")] = ROOT / "README.md",
) -> None:
    """Write the figures."""
    rows = [row for row in demo.read(ROOT / "docs/demo.json").rows.values() if row.name not in _NOT_DRAWN]
    (ROOT / "docs/frontier.svg").write_text(frontier(rows, [""] * len(rows)), encoding="utf-8")
    readme.write_text(filled(readme.read_text(encoding="utf-8"), figures(ROOT / "docs")), encoding="utf-8")


def figures(docs: Path) -> dict[str, str]:
    """What stands between marks, by name, from the measured figures in a folder."""
    return {"numbers": numbers(docs), "budgets": budgets(docs), "processes": processes(docs)}


def budgets(docs: Path) -> str:
    """What to take in how much memory."""
    return demo.read(docs / "demo.json").budgets


def numbers(docs: Path) -> str:
    """Memory, a switch and accuracy of the demo's tasks."""
    texts = measured.read(docs / "device.json")["texts"].rows
    ours, onnx = (format_size(int(_number(texts[row]["peak_bytes"]))) for row in ("native_tasks", "onnx_int8"))
    contest = results_file.read(docs / "results.json").contests[ASSISTANT]
    strict = contest.figures["switch.speedup_strict_mean"]
    assert contest.limits.storage is not None
    shown = demo.read(docs / "demo.json")
    points = gather(read_accuracy(docs / "accuracy.json"))
    kept, one_mask, all_blocks = (f"{_share(points, at):.3f}" for at in (_QUARTER, _ONE_MASK, _ALL_BLOCKS))
    fast = shown.figures["switch.speedup_own_sparse_mean"]
    return "\n".join([
        f"* **{ours}**: a whole process with five text tasks, Python included. ONNX Runtime in int8 takes {onnx}.",
        f"* **{switch_ms(contest)}**: a cold switch, from storage of {contest.limits.storage / 1e6:.0f} MB/s. "
        f"Reading all of the next task's blocks takes {strict:.1f} × as long, on a fast disk {fast:.1f} ×.",
        f"* **{kept}** of the dense accuracy on six tasks, with a quarter of the blocks in int4. One mask for all "
        f"keeps {one_mask}, all blocks {all_blocks}.",
    ])  # fmt: skip


def processes(docs: Path) -> str:
    """A line for each whole process that was measured, and what they ran on."""
    rows = measured.read(docs / "device.json")
    shown = demo.read(docs / "demo.json")
    points = gather(read_accuracy(docs / "accuracy.json"))
    lines = []
    for process in _PROCESSES:
        row = rows[process.section].rows.get(process.row)
        if row is None:
            continue
        share = None if process.point is None else _share(points, process.point)
        faults = f"{_faults(row, shown.figures):.1f} ms" if process.has_rows else "none"
        lines.append([
            process.title,
            format_size(int(_number(row["peak_bytes"]))),
            f"{seconds(row['first_output_ms'])} s",
            _speed(row),
            faults,
            _NOT_MEASURED if share is None else f"{share:.2f}",
        ])  # fmt: skip
    header = ["", "most memory", "first output", "speed", "row faults", "accuracy ÷ dense"]
    counted = "ms_of_rows_per_text" in rows["texts"].rows["native_tasks"]
    return table(header, lines) + "\n\n" + _told(_machine(rows["texts"]), _machine(rows["decoder"]), counted)


def _share(points: Sequence[Point], at: tuple[str, float, str, str]) -> float:
    """Of the dense model's metric, the mean over a domain's tasks; rows of domain D hold shares."""
    point = find(points, *at)
    assert point is not None
    return point.value() / point.dense()


def _faults(row: measured.Row, figures: Mapping[str, float]) -> float:
    """Of the process itself where it counted them, else of the demo."""
    return _number(row.get("ms_of_rows_per_text", figures[ROW_FAULTS]))


def _speed(row: measured.Row) -> str:
    key, unit = ("ms_per_text", "ms a text") if "ms_per_text" in row else ("decode_per_s", "tokens/s")
    return f"{short(row[key])} {unit}{spread(row, key, short)}"


_WIDEST = {"amx": " with AMX", "avx512": " with AVX-512", "avx2": " with AVX2"}


def _machine(found: measured.Measured) -> str:
    known = found.machine["isa"]
    widest = next((words for isa, words in _WIDEST.items() if any(each.startswith(isa) for each in known)), "")
    return f"{found.machine['cpu']}{widest}"


def _told(texts: str, decoder: str, counted: bool) -> str:
    where = f"all on {texts}" if texts == decoder else f"texts on {texts}, the decoder on {decoder}"
    return f"Medians, with the least and the most; {where}." + ("" if counted else " Row faults are the demo's.")


def _number(value: measured.Figure) -> float:
    assert not isinstance(value, list)
    return value


def filled(page: str, found: dict[str, str]) -> str:
    """The page with these texts in their places.

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
