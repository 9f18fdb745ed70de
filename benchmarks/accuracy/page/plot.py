"""The frontier: metric against resident bytes, one line for each method."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.accuracy.page.points import Point, average
from weightpager_lab.demo.page import svg

NAMES = {
    "ours": "weightpager",
    "ours_private": "weightpager, private blocks",
    "ours_int8": "weightpager in int8",
    "ours_int4": "weightpager in int4",
    "ours_private_int4": "weightpager in int4, private blocks",
    "ours_low_rank_int4": "weightpager in int4, a low-rank part for each task",
    "shared_mask": "one shared mask",
    "shared_mask_int8": "one shared mask in int8",
    "shared_mask_int4": "one shared mask in int4",
    "all_blocks_int4": "dense in int4, trained",
    "all_blocks_int2": "dense in int2, trained",
    "low_rank_int4": "dense in int4, a low-rank part for each task",
    "unaligned": "unaligned",
    "per_task_checkpoint": "whole checkpoint per task",
    "int8": "dense in int8",
    "int4": "dense in int4",
    "int3": "dense in int3",
    "int2": "dense in int2",
}
"""What readers call the methods of the rows, in the order of tables and legends."""

QUANTISED = ("int8", "int4", "int3", "int2")
"""Methods whose fraction follows from their bits; the others are measured where they are asked to be."""

_ENTRY = 0.215
"""Inches that an entry of the legend takes."""

_CLOSEST = 1.3
"""Ratio of two fractions whose numbers don't run into each other."""

_TRAINED = ("finetune", "closed-form", "none")
_COLOURS = (
    "#0f766e", "#2563eb", "#0891b2", "#059669", "#65a30d", "#15803d", "#d97706", "#ca8a04", "#a16207", "#7c2d12",
    "#b45309", "#475569", "#94a3b8", "#9333ea", "#be123c", "#e11d48", "#f43f5e", "#fb7185",
)  # fmt: skip
_MARKS = ("o", "s", "^", "h", "H", "+", "D", "d", "p", "8", "x", "1", "v", "P", "X", "*", "<", ">")
_DENSE = "#64748b"


def label(point: Point) -> str:
    """A point's method as readers call it, with its recovery where that isn't the usual one."""
    name = NAMES[point.method]
    usual = point.recover == "finetune" or point.method in QUANTISED
    return name if usual else f"{name}, {'no recovery' if point.recover == 'none' else point.recover}"


def frontier(points: Sequence[Point], metric: str, depth: float, *, log_metric: bool = False) -> str:
    """The plot as SVG text.

    Args:
        points: of one domain; at least one.
        metric: what the values are.
        depth: how far below the dense model's value the picture reaches, unless its axis is logarithmic.
        log_metric: whether the metric's axis is logarithmic too.
    """

    def draw(axes: Axes) -> None:
        _dense_line(axes, points)
        for name, line in _lines(points).items():
            _line(axes, name, line)
        axes.set_xscale("log")
        if not log_metric:
            _cut(axes, points, depth)
        if log_metric:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        fractions = sorted({point.fraction for point in points if point.method not in QUANTISED} or {0.25, 0.5})
        axes.set_xticks(fractions, _numbers(fractions))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("paged weights in memory, as a share of the dense bytes in bfloat16")
        axes.set_ylabel(metric)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))

    entries = len(_lines(points)) + 1  # and the dense line
    return svg(draw, (9, max(4.2, _ENTRY * entries + 0.4)))


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    order = list(NAMES)
    known = sorted(points, key=lambda point: (order.index(point.method), _TRAINED.index(point.recover)))
    lines: dict[str, list[Point]] = {}
    for point in known:
        lines.setdefault(label(point), []).append(point)
    return lines


def _line(axes: Axes, name: str, points: Sequence[Point]) -> None:
    """One method, from its smallest to its largest fraction; bars reach from the worst seed to the best."""
    line = sorted(points, key=lambda point: point.fraction)
    number = list(NAMES).index(line[0].method)
    trained = name == NAMES[line[0].method]
    means = [point.value() for point in line]
    below = [mean - min(point.values) for mean, point in zip(means, line, strict=True)]
    above = [max(point.values) - mean for mean, point in zip(means, line, strict=True)]
    axes.errorbar(
        [point.fraction for point in line],
        means,
        yerr=[below, above],
        label=name,
        color=_COLOURS[number],
        marker=_MARKS[number],
        markersize=5,
        capsize=3,
        linewidth=1.6,
        markerfacecolor=_COLOURS[number] if trained else "white",
        linestyle="-" if trained else ":",
    )


def _dense(points: Sequence[Point]) -> float:
    return average({row.seed: row.dense for point in points for row in point.means}.values())


def _dense_line(axes: Axes, points: Sequence[Point]) -> None:
    axes.axhline(_dense(points), color=_DENSE, linestyle="--", linewidth=1.2, label="dense")


def _cut(axes: Axes, points: Sequence[Point], depth: float) -> None:
    """Leave out what is far worse than all else, and say so: it would press the others together."""
    least = _dense(points) - depth
    deep = [f"{label(point)} {point.value():.2f}" for point in points if point.value() < least]
    if 0 < len(deep) < len(points):
        axes.set_ylim(bottom=least)
        axes.text(0.01, 0.02, f"below: {', '.join(deep)}", transform=axes.transAxes, color=_DENSE, fontsize=8)


def _numbers(fractions: Sequence[float]) -> list[str]:
    """Ascending fractions as texts, empty where the one before is too close."""
    found: list[str] = []
    last = 0.0
    for fraction in fractions:
        found.append(f"{fraction:g}" if fraction >= _CLOSEST * last else "")
        last = fraction if found[-1] else last
    return found
