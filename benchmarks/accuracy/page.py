"""Writes the page ``docs/accuracy.md`` and its plots.

python -m benchmarks.accuracy.page --json docs/accuracy.json --out docs/accuracy.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.accuracy import rows as row_file
from benchmarks.accuracy.goals import DOMAINS, GOALS, Domain
from benchmarks.accuracy.kept_rows import KeptRow, kept_table
from benchmarks.accuracy.rows import Point, Row, average, find, gather
from benchmarks.report.tables import table
from benchmarks.row_file import read as read_rows
from weightpager.config import format_size
from weightpager_lab.demo.page import svg

NAMES = {
    "ours": "weightpager",
    "ours_private": "weightpager, private blocks",
    "ours_int8": "weightpager in int8",
    "ours_int4": "weightpager in int4",
    "ours_private_int4": "weightpager in int4, private blocks",
    "ours_low_rank_int4": "weightpager in int4, a low-rank part for each task",
    "own_tower_int4": "weightpager in int4, a picture tower for each task",
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
    "#0f766e", "#2563eb", "#0891b2", "#059669", "#65a30d", "#15803d", "#4d7c0f", "#d97706", "#ca8a04", "#a16207",
    "#7c2d12", "#b45309", "#475569", "#94a3b8", "#9333ea", "#be123c", "#e11d48", "#f43f5e", "#fb7185",
)  # fmt: skip
_MARKS = ("o", "s", "^", "h", "H", "+", "<", "D", "d", "p", "8", "x", "1", "v", "P", "X", "*", "2", ">")
_DENSE = "#64748b"


def label(point: Point) -> str:
    """A point's method as readers call it, with its recovery where that isn't the usual one."""
    name = NAMES[point.method]
    if point.recover == "finetune" or point.method in QUANTISED:
        return name
    return f"{name.removesuffix(', trained')}, {'no recovery' if point.recover == 'none' else point.recover}"


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
        axes.set_xlabel("paged weights in memory,\nas a share of the dense bytes in bfloat16")
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


_SPARSE_INT4 = ("ours_private_int4", "ours_int4", "shared_mask_int4")
_SHORT = {
    0.304: ("low_rank_int4",),
    0.281: ("all_blocks_int4", "int4"),
    0.163: ("ours_low_rank_int4",),
    0.156: ("all_blocks_int2", "int2"),
    0.14: _SPARSE_INT4,
    0.07: _SPARSE_INT4,
    0.035: _SPARSE_INT4,
}
"""Fractions and their methods, of which the page tells first: all in int4, which is what a device would have."""


def summary_table(points: Sequence[Point]) -> str:
    """What int4 keeps, in every domain but that of general texts; rows that were measured in one at least."""
    domains = [domain for domain in DOMAINS if not domain.lower]
    lines = []
    for fraction, methods in _SHORT.items():
        for method in methods:
            found = [find(points, domain.letter, fraction, method, _usual(method)) for domain in domains]
            if any(found):
                cells = [_short(domain, point) for domain, point in zip(domains, found, strict=True)]
                lines.append([NAMES[method], f"{fraction:g}", *cells])
    return table(
        ["", "share of dense bytes (a)", *(f"domain {domain.letter}: {domain.short}" for domain in domains)], lines
    )


def _usual(method: str) -> str:
    return "none" if method in QUANTISED else "finetune"


def _short(domain: Domain, point: Point | None) -> str:
    if point is None:
        return "not measured"
    kept = domain.form.format(point.value()) if domain.relative else domain.against_dense(point)
    return f"{kept} ({_seeds(point)})"


def _seeds(point: Point) -> str:
    return "1 seed" if len(point.seeds) == 1 else f"{len(point.seeds)} seeds"


def goals_table(points: Sequence[Point]) -> str:
    lines = []
    for goal in GOALS:
        for method in goal.methods:
            verdict = goal.judge(points, method)
            lines.append(
                [goal.domain, f"{goal.fraction:g}", goal.asked, NAMES[method], verdict.word, verdict.found or "–"]
            )
    return table(["domain", "a", "asked", "method", "reached", "found"], lines)


def frontier_table(points: Sequence[Point], domain: Domain) -> str:
    """Every method at every fraction, the most bytes first, the best first among equals."""
    sign = 1 if domain.lower else -1
    ordered = sorted(points, key=lambda point: (-point.fraction, sign * point.value()))
    against = "× dense" if domain.lower else "points to dense"
    header = ["a", "method", domain.metric, "dense", against, "seeds", "overlap", "per switch", "compile"]
    lines = [
        [
            f"{point.fraction:g}",
            label(point),
            domain.value(point),
            domain.form.format(point.dense()),
            domain.against_dense(point),
            str(len(point.seeds)),
            f"{point.overlap:.3f}",
            format_size(round(point.bytes_per_switch)),
            f"{point.compile_seconds / 60:.1f} min",
        ]
        for point in ordered
    ]
    return table(header, lines)


def task_table(points: Sequence[Point], domain: Domain) -> str:
    """Every task under every method of one fraction; dense as the point with the most seeds has it.

    A method that has fewer seeds says so.
    """
    order = list(NAMES)
    columns = sorted(points, key=lambda point: order.index(point.method))
    most = max(columns, key=lambda point: len(point.seeds))
    shown = [task for task in most.tasks if all(task in point.tasks for point in columns)]
    lines = [
        [task, domain.form.format(most.dense(task)), *(domain.form.format(point.value(task)) for point in columns)]
        for task in [*shown, "mean"]
    ]
    fewer = {point.method: f" ({_seeds(point)})" for point in columns if len(point.seeds) < len(most.seeds)}
    return table(["task", "dense", *(label(point) + fewer.get(point.method, "") for point in columns)], lines)


_OURS = ("ours", "ours_private", "ours_int8", "ours_int4", "ours_private_int4", "ours_low_rank_int4")
_ONE_MASK = ("shared_mask", "shared_mask_int8", "shared_mask_int4")
_NEEDS_NO_PAGING = (*_ONE_MASK, "all_blocks_int4", "all_blocks_int2", "low_rank_int4", *QUANTISED)
_ABOUT = 1.125
"""int4 has 0.281 of the dense bytes, which a user who thinks of a quarter would still take."""

_MARGIN = 0.5
"""Points, or percent of perplexity, that may be chance where a method has one seed."""


def simpler_does(points: Sequence[Point]) -> list[str]:
    """Where a method that needs no paging does as well as ours in about as few bytes, in words.

    Methods are compared by what they lose against the dense model: those with other seeds have other dense models.
    """
    lines = []
    for domain in DOMAINS:
        own = [point for point in points if point.domain == domain.letter]
        for fraction in sorted({point.fraction for point in own if point.method in _OURS}, reverse=True):
            best = _best([point for point in own if point.fraction == fraction and point.method in _OURS], domain)
            rivals = [
                point for point in own if point.method in _NEEDS_NO_PAGING and point.fraction <= fraction * _ABOUT
            ]
            rival = _best(rivals, domain) if rivals else None
            if rival is None:
                continue
            wins = _best([best, rival], domain) is rival
            if wins or _reaches(rival, best, domain):
                lines.append(
                    f"Domain {domain.letter}, a = {fraction:g}: {label(rival)} at {rival.fraction:g} has "
                    f"{domain.metric} {_value(rival, domain)}, {label(best)} {_value(best, domain)}"
                    f"{'' if wins else _chance(rival, best)}."
                )
    return lines


def _value(point: Point, domain: Domain) -> str:
    return f"{domain.form.format(point.value())} ({domain.against_dense(point)} {'' if domain.lower else 'to '}dense)"


def _reaches(rival: Point, best: Point, domain: Domain) -> bool:
    """Whether a rival's best seed is as good as our worst; where one has a single seed, whether it is near."""
    if _one_seed(rival, best):
        return domain.lost(rival) <= domain.lost(best) + _MARGIN
    return min(domain.losses(rival)) <= max(domain.losses(best))


def _chance(rival: Point, best: Point) -> str:
    """Why a difference counts for nothing."""
    return "; with one seed, half a point may be chance" if _one_seed(rival, best) else "; seeds differ by more"


def _one_seed(*points: Point) -> bool:
    return any(len(point.seeds) == 1 for point in points)


def _best(points: Sequence[Point], domain: Domain) -> Point:
    """The one that loses least; of equal ones the last."""
    best = points[0]
    for point in points[1:]:
        if domain.lost(point) <= domain.lost(best):
            best = point
    return best


HERE = Path(__file__).parent


def main(
    json: Annotated[Path, typer.Option(help="The rows that `python -m benchmarks.accuracy` wrote.")],
    out: Annotated[Path, typer.Option(help="The page to write; its plots are put beside it.")],
) -> None:
    """Write the accuracy page and its plots."""
    if not json.is_file():
        raise typer.BadParameter(f"expected a file of rows, found nothing at {json}", param_hint="--json")
    rows = row_file.read(json)
    points = gather(rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        own = [point for point in points if point.domain == domain.letter]
        if own:
            plot = frontier(own, domain.metric, domain.depth, log_metric=domain.lower)
            (out.parent / plot_name(out, domain)).write_text(plot, encoding="utf-8")
    kept = read_rows(json.with_name("kept.json"), KeptRow)
    out.write_text(render(rows, json.name, out, kept), encoding="utf-8")


def render(rows: Sequence[Row], json_name: str, out: Path, kept: Sequence[KeptRow] = ()) -> str:
    """The page's text.

    Args:
        rows: all that was measured.
        json_name: the file that they lie in, beside the page.
        out: where the page will lie; its plots are named after it.
        kept: what tasks dropped while each kept a share of the dense metric.
    """
    points = gather(rows)
    environment = Environment(  # Markdown, not HTML: nothing to escape
        autoescape=False, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((HERE / "accuracy_page.md.j2").read_text(encoding="utf-8"))
    return template.render(
        json_name=json_name,
        names=NAMES,
        summary=summary_table(points),
        goals=goals_table(points),
        domains=[_described(domain, points, out) for domain in DOMAINS],
        kept=[(each.letter, kept_table([row for row in kept if row.domain == each.letter])) for each in DOMAINS],
        simpler=simpler_does(points),
        commands=sorted({row.command for row in rows} | {row.command for row in kept}),
        commits=sorted({row.commit for row in rows} | {row.commit for row in kept}),
    )


def plot_name(page: Path, domain: Domain) -> str:
    return f"{page.stem}-{domain.letter}.svg"


def _described(domain: Domain, points: Sequence[Point], out: Path) -> dict[str, object]:
    own = [point for point in points if point.domain == domain.letter]
    by_task = []
    for fraction in domain.by_task:
        found = [find(own, domain.letter, fraction, method, "finetune") for method in NAMES]
        columns = [point for point in found if point is not None]
        if columns:
            by_task.append((f"{fraction:g}", task_table(columns, domain)))
    return {
        "letter": domain.letter,
        "title": domain.title,
        "about": domain.about,
        "metric": domain.metric,
        "plot": plot_name(out, domain),
        "frontier": frontier_table(own, domain) if own else "",
        "by_task": by_task,
    }


if __name__ == "__main__":
    typer.run(main)
