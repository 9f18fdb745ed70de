"""Who wins: the first tables of ``docs/results.md``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.report.tables import mean, ms, table
from weightpager.config import format_size
from weightpager.lab.contest.results.figures import NEVER_LOAD, RIVALS
from weightpager.lab.contest.results.result import Contest, Row

OURS = ("ours", "ours_while_loading")
"""Rows of the system as it is; without alignment it is a rival."""

Value = Callable[[Row], float | None]

HEADLINES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "a switch": ("switch.ready_mean_ms", lambda value: ms(value / 1e3)),
    "faster than a whole sparse checkpoint": ("switch.speedup_whole_mean", lambda value: f"{value:.1f} ×"),
    "than its paged weights only": ("switch.speedup_strict_mean", lambda value: f"{value:.1f} ×"),
    "than a dense checkpoint": ("switch.speedup_dense_mean", lambda value: f"{value:.1f} ×"),
    "paged weights in memory, against a shared dense backbone": (
        "memory.paged_below_shared_bf16",
        lambda value: f"{-value:+.0%}",
    ),
    "all weights in memory, of the best rival as accurate": (
        "memory.weights_vs_best_rival",
        lambda value: f"{value:.2f} ×",
    ),
    "whole process, against the same": ("memory.process_below_shared_bf16", lambda value: f"{-value:+.0%}"),
}
"""Column → the figure that it shows, and how it is written. A column that no contest has a figure for isn't shown."""

_COMPARED = tuple(RIVALS[word] for word in ("whole", "strict", "dense"))

CRITERIA: Mapping[str, tuple[Value, Callable[[float], str]]] = {
    "a cold switch until ready": (lambda row: mean(row, "ready"), lambda value: ms(value)),
    "a cold switch until the first output": (lambda row: mean(row, "first_output"), lambda value: ms(value)),
    # Not the waiting alone: what is loaded anew in every forward would count as a forward.
    "a visit of the trace until its output": (lambda row: _visit(row), lambda value: ms(value)),
    "a warm forward": (
        lambda row: median(row.found.forwards) if row.found else None,
        lambda value: ms(value),
    ),
    "weights in memory": (
        lambda row: float(row.found.memory.weights) if row.found and row.found.memory.weights else None,
        lambda value: format_size(value),
    ),
    "the whole process's peak": (
        lambda row: None if row.peak_memory is None else float(row.peak_memory),
        lambda value: format_size(value),
    ),
}
"""What less is better of → its value in a row, and how it is written. No weights at all in memory is no value."""


def winners(contests: Mapping[str, Contest]) -> str:
    """Who is best at what, and how we compare: the table that names what beats us."""
    lines = []
    for name, contest in contests.items():
        rows = [row for row in contest.comparable if row.room == 1.0]
        for what, (value, form) in CRITERIA.items():
            if "cold" in what and not contest.cold:
                continue
            known = [(found, row) for row in rows if (found := value(row)) is not None]
            own = [pair for pair in known if pair[1].method in OURS]
            if not own or len(known) == len(own):
                continue
            loading = [pair for pair in known if pair[1].method not in NEVER_LOAD.values()]
            ours = min(own, key=lambda pair: pair[0])
            lines.append([name, what, _best(known, form), _best(loading, form), form(ours[0])])
    return table(["contest", "least of", "best", "best of those that load", "ours"], lines)


def _visit(row: Row) -> float | None:
    return None if row.found is None or row.mean_waited is None else row.mean_waited + median(row.found.forwards)


def _best(known: Sequence[tuple[float, Row]], form: Callable[[float], str]) -> str:
    """The method with the least value; in bold if it isn't ours, else with the next one."""
    ranked = sorted(known, key=lambda pair: pair[0])
    best, row = ranked[0]
    if row.method not in OURS:
        return f"**{row.label}**, {form(best)}"
    behind = [pair for pair in ranked if not pair[1].method.startswith("ours")]
    return f"ours; next {behind[0][1].label}, {form(behind[0][0])}" if behind else "ours"


def headlines(contests: Mapping[str, Contest]) -> str:
    """A line for each contest, with the pairs that every one of its speed-ups rests on."""
    found = {key for contest in contests.values() for key in contest.figures}
    columns = {column: (key, form) for column, (key, form) in HEADLINES.items() if key in found}
    lines = [
        [
            name,
            contest.facts.dtype,
            f"{contest.facts.mean_overlap:.2f}",
            *(form(contest.figures[key]) if _counts(contest, key) else "–" for key, form in columns.values()),
            _pairs(contest),
        ]
        for name, contest in contests.items()
    ]
    return table(["contest", "pages", "overlap", *columns, "pairs"], lines)


def _counts(contest: Contest, key: str) -> bool:
    return key in contest.figures and (contest.cold or not key.startswith("switch."))


def _pairs(contest: Contest) -> str:
    """The fewest ordered pairs of which a method in the headlines was measured, of how many there are."""
    compared = [row for name in ("ours", *_COMPARED) if (row := contest.row(name)) is not None]
    tasks = len(contest.facts.tasks)
    return f"{min((len(row.medians('ready')) for row in compared), default=0)} of {tasks * (tasks - 1)}"
