"""The page's tables, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.page.domains import DOMAINS, Domain
from benchmarks.accuracy.page.goals import GOALS
from benchmarks.accuracy.page.plot import NAMES, QUANTISED, label
from benchmarks.accuracy.page.points import Point, find
from benchmarks.report.tables import table
from weightpager.config import format_size

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
    """What was asked and what was reached, by figure and by method."""
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
