"""The plots of ``docs/results.md``, as SVG text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from benchmarks.report.results_file import ScalingRow
from weightpager_lab.contest.result import Contest, Row
from weightpager_lab.demo.page import heat_map, svg

_COLOURS = (
    "#0f766e", "#2563eb", "#94a3b8", "#d97706", "#be123c", "#9333ea", "#64748b", "#ca8a04", "#0891b2", "#65a30d",
)  # fmt: skip
_SHOWN = (
    "ours", "ours_unaligned", "sparse_strict", "sparse_whole", "dense_direct", "shared_bf16", "shared_mask",
    "ours_all_blocks", "ours_one_mask", "sparse_language",
)  # fmt: skip


def switch_matrix(contest: Contest) -> str:
    """Milliseconds of every ordered pair."""
    tasks = contest.facts.tasks
    row = contest.row("ours")
    found = row.medians("ready") if row else {}
    cells = [[1e3 * found.get((a, b), np.nan) for b in tasks] for a in tasks]
    return heat_map(tasks, cells, "{:.1f}")


def latencies(contest: Contest) -> str:
    """Every cold switch until its first output, sorted, a line for each method."""

    def draw(axes: Axes) -> None:
        for number, row in enumerate(_rows(contest)):
            values = np.sort(row.values("first_output")) * 1e3
            axes.plot(values, np.linspace(0, 1, len(values)), label=row.label, color=_COLOURS[number], lw=1.8)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("ms until the first output, cold")
        axes.set_ylabel("share of switches")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

    return svg(draw, (9, 3.6))


def memory_over_trace(contest: Contest) -> str:
    """Weights in memory after every visit."""

    def draw(axes: Axes) -> None:
        for number, row in enumerate(_rows(contest)):
            visits = row.found.visits if row.found else []
            sizes = [visit.weight_bytes / 2**20 for visit in visits]
            axes.step(range(1, len(sizes) + 1), sizes, label=row.label, color=_COLOURS[number], where="mid")
        axes.set_ylim(bottom=0)
        axes.set_xlabel("visit of the trace")
        axes.set_ylabel("MiB of weights in memory")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

    return svg(draw, (9, 3.6))


def scaling(rows: Sequence[ScalingRow]) -> str:
    """Memory and bytes per switch against the number of tasks."""
    lines: Mapping[str, list[float]] = {
        "one sparse checkpoint for each task": [row.separate_bytes for row in rows],
        "all pages": [row.stored_bytes for row in rows],
        "smallest arena": [row.task_bytes for row in rows],
        "read by a switch": [row.switch_bytes for row in rows],
        "tables": [row.table_bytes for row in rows],
    }

    def draw(axes: Axes) -> None:
        for number, (label, sizes) in enumerate(lines.items()):
            mebibytes = [size / 2**20 for size in sizes]
            axes.plot([row.tasks for row in rows], mebibytes, "o-", label=label, color=_COLOURS[number])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("tasks")
        axes.set_ylabel("MiB")
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

    return svg(draw, (9, 3.6))


def _rows(contest: Contest) -> list[Row]:
    return [row for name in _SHOWN if (row := contest.row(name)) is not None]
