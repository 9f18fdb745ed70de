"""The demo's page: one self-contained HTML file."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from typing import NamedTuple

import matplotlib
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from weightpager.config import format_size
from weightpager_lab.demo.result import DemoResult, Resident, line

_STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "weightpager",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": "#666",
    "axes.labelcolor": "#666",
    "axes.edgecolor": "#999",
    "xtick.color": "#666",
    "ytick.color": "#666",
}
_WIDE = (4.6, 3.9)  # inches of a plot whose letters can be read on a phone as they are on a desk
_OURS, _QUANTISED, _SAME, _DENSE = "#0f766e", "#a78bfa", "#d97706", "#64748b"


def accuracy(result: DemoResult) -> str:
    """Each task's metric: dense, ours, one shared mask, int4."""
    series = (
        ("dense", "dense", _DENSE),
        ("sparse", "weightpager", _OURS),
        ("shared_mask", "one shared mask", _SAME),
        ("int4", "dense in int4", _QUANTISED),
    )

    def draw(axes: Axes) -> None:
        at = np.arange(len(result.tasks))
        for number, (field, label, colour) in enumerate(series):
            heights = [getattr(task, field) for task in result.tasks]
            axes.bar(at + (number - 1.5) * 0.2, heights, 0.19, label=label, color=colour)
        axes.set_xticks(at, [task.name for task in result.tasks], rotation=30, ha="right")
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy on held-out data")
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, _WIDE)


def switch_times(result: DemoResult) -> str:
    """Time of every switch beside what it replaces, by the next task."""

    def draw(axes: Axes) -> None:
        names = [task.name for task in result.tasks]
        for number, name in enumerate(names):
            switches = [switch for switch in result.switches if switch.to_task == name]
            ours = [switch.ms for switch in switches]
            axes.scatter([number] * len(ours), ours, color=_OURS, s=28, zorder=3, label="" if number else "weightpager")
            for value, label, colour in (
                (switches[0].whole_sparse_ms, "own sparse weights, whole", _SAME),
                (switches[0].dense_ms, "dense checkpoint, whole", _DENSE),
            ):
                axes.hlines(value, number - 0.3, number + 0.3, color=colour, lw=3, label="" if number else label)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_xlabel("next task; one point for each it can come from")
        axes.set_ylabel("ms, cold")
        axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, _WIDE)


def overlap_map(result: DemoResult) -> str:
    """Share of the next task's bytes that the last one keeps too."""
    return heat_map([task.name for task in result.tasks], result.overlap, "{:.2f}")


def load_map(result: DemoResult) -> str:
    """MiB to load for every ordered pair."""
    names = [task.name for task in result.tasks]
    load = {(switch.from_task, switch.to_task): switch.bytes / 2**20 for switch in result.switches}
    return heat_map(names, [[load.get((a, b), 0.0) for b in names] for a in names], "{:.1f}")


def memory(result: DemoResult) -> str:
    """Weights in memory against the mean metric of the table's rows, numbered as there."""
    return frontier(result.memory, [str(number) for number, _ in enumerate(result.memory, 1)])


def frontier(rows: Sequence[Resident], labels: Sequence[str]) -> str:
    """Weights in memory against the mean metric, with a line through the bundles that no smaller one equals.

    Rows far below ours would press the others together, and are left out.
    """
    ours = next(row.mean_metric for row in rows if row.ours)
    drawn = [(label, row) for label, row in zip(labels, rows, strict=True) if row.mean_metric > ours - SHOWN]

    def draw(axes: Axes) -> None:
        points = [(row.bytes / 2**20, row.mean_metric) for _, row in drawn]
        for point, (label, row), offset in zip(
            points, drawn, label_offsets(points, [label for label, _ in drawn]), strict=True
        ):
            colour = _FAMILIES[_family(row)]
            marker, size = ("*", 90) if row.ours or row.is_bundle else ("o", 36)
            axes.scatter(*point, color=colour, s=size, marker=marker, zorder=3)
            axes.annotate(label, point, offset, textcoords="offset points", ha="center", va="center", color=colour)
        along = line(rows)
        axes.plot([row.bytes / 2**20 for row in along], [row.mean_metric for row in along], color=_OURS, lw=1.5)
        for family in dict.fromkeys(_family(row) for _, row in drawn):
            axes.scatter([], [], color=_FAMILIES[family], label=family or "others")
        axes.set_xlim(left=0)
        axes.margins(y=0.25)
        axes.set_xlabel("MiB of weights in memory")
        axes.set_ylabel("mean accuracy")
        axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    return svg(draw, _WIDE)


SHOWN = 0.1
"""How far below ours a row's accuracy may lie to be drawn."""

_FAMILIES = {"weightpager": _OURS, "one shared mask": _SAME, "own sparse": "#0ea5e9", "dense": _QUANTISED, "": _DENSE}
"""How rows' names begin, and their colour."""


def _family(row: Resident) -> str:
    return next(start for start in _FAMILIES if row.name.startswith(start))


def label_offsets(points: Sequence[tuple[float, float]], labels: Sequence[str]) -> list[tuple[float, float]]:
    """Where each point's label has its centre, in typographic points from it: nearby, on no other label or marker.

    Args:
        points: in the plot's data, from zero on to the right.
        labels: their labels, of one line.
    """
    right = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points), max(y for _, y in points)
    places = [(_AXES[0] * x / right, _AXES[1] * (y - low) / ((high - low) or 1.0)) for x, y in points]
    taken = [_Box(x, y, _MARKER, _MARKER) for x, y in places]
    offsets = []
    for (x, y), label in zip(places, labels, strict=True):
        width = _DIGIT * len(label) + _GAP  # "1" right beside "2" would be read as 12
        boxes = {(dx, dy): _Box(x + dx, y + dy, width, _LINE) for dx, dy in _AROUND}
        offset = min(boxes, key=lambda each: sum(boxes[each].meets(other) for other in taken))
        taken.append(boxes[offset])
        offsets.append(offset)
    return offsets


_AXES = (250.0, 150.0)  # points of type that the data of a `_WIDE` plot spans, about
_MARKER, _DIGIT, _LINE, _GAP = 9.0, 6.5, 10.0, 5.0
_AROUND = [
    (dx * reach, dy * reach)
    for reach in (11.0, 20.0)
    for dx, dy in ((0, 1), (0, -1), (1, 0), (-1, 0), (0.8, 0.8), (-0.8, 0.8), (0.8, -0.8), (-0.8, -0.8))
]
"""Places for a label, the nearest and usual ones first."""


class _Box(NamedTuple):
    """A box by its centre, in typographic points."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: _Box) -> bool:
        return 2 * abs(self.x - other.x) < self.width + other.width and (
            2 * abs(self.y - other.y) < self.height + other.height
        )


def heat_map(names: Sequence[str], cells: Sequence[Sequence[float]], form: str) -> str:
    """A square of numbers, rows being where a switch comes from; NaN and the diagonal stay empty.

    Args:
        names: of rows and columns.
        cells: their numbers; at least one beside the diagonal.
        form: of a number.
    """

    def draw(axes: Axes) -> None:
        values = np.array(cells, float)
        np.fill_diagonal(values, np.nan)
        axes.imshow(values, cmap="YlGnBu")
        for (row, col), value in np.ndenumerate(values):
            if not np.isnan(value):
                dark = value > np.nanmin(values) + 0.6 * (np.nanmax(values) - np.nanmin(values))
                colour = "white" if dark else "#223"
                axes.text(col, row, form.format(value), ha="center", va="center", color=colour, fontsize=9)
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("to")
        axes.set_ylabel("from")
        axes.spines[:].set_visible(False)

    return svg(draw, (4.4, 3.9))


def svg(draw: Callable[[Axes], None], size: tuple[float, float]) -> str:
    """A figure as SVG text that reads on light and dark pages; the same data give the same text.

    Args:
        draw: draws on the axes.
        size: width and height in inches.
    """
    return svg_rows(lambda rows: draw(rows[0]), size, (1,))


def svg_rows(draw: Callable[[Sequence[Axes]], None], size: tuple[float, float], heights: Sequence[float]) -> str:
    """Like `svg`, with plots one below the other on the same x axis.

    Args:
        draw: draws on the axes of all rows.
        size: width and height in inches.
        heights: of the rows, in proportion.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.subplots(len(heights), sharex=True, squeeze=False, height_ratios=heights)[:, 0].tolist())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def render(result: DemoResult) -> str:
    """The page's HTML; it asks for nothing from outside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"size": format_size, "fact": _fact}
    template = environment.from_string(
        files("weightpager_lab.demo").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    drawn = {
        name: Markup(draw(result))  # noqa: S704 - matplotlib escapes the text in its SVG
        for name, draw in (
            ("accuracy", accuracy),
            ("switch_times", switch_times),
            ("overlap_map", overlap_map),
            ("load_map", load_map),
            ("memory", memory),
        )
    }
    shown = next((row.mean_metric for row in result.memory if row.ours), 0.0) - SHOWN
    return template.render(result=result, plots=drawn, shown=shown)


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_fact, value))
    return "unknown" if value is None else str(value)
