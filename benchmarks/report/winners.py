"""Who wins: the first tables of ``docs/results.md``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from benchmarks.report.tables import ms, table
from weightpager.config import format_size
from weightpager_lab.contest.figures import NEVER_LOAD, RIVALS, Field, speedup
from weightpager_lab.contest.result import Contest, Row

OURS, LOADING = "ours", "ours_while_loading"
"""Rows of the system as it is, waiting for pages or running while they are loaded; without alignment it is a rival."""

Value = Callable[[Row], float | None]

HEADLINES: Mapping[str, tuple[str, Callable[[float], str]]] = {
    "faster than a whole checkpoint": ("switch.speedup_whole_mean", lambda value: f"{value:.1f} ×"),
    "faster than its paged weights": ("switch.speedup_strict_mean", lambda value: f"{value:.1f} ×"),
    "faster than the language model's": ("switch.speedup_language_mean", lambda value: f"{value:.1f} ×"),
    "faster than a dense checkpoint": ("switch.speedup_dense_mean", lambda value: f"{value:.1f} ×"),
    "paged weights against adapters": ("memory.paged_below_shared_bf16", lambda value: f"{-value:+.0%}"),
    "weights ÷ smallest rival's": ("memory.weights_vs_best_rival", lambda value: f"{value:.2f}"),
    "process against adapters": ("memory.process_on_torch_below_shared_bf16", lambda value: f"{-value:+.0%}"),
    "process against all blocks": (
        "memory.process_on_native_below_shared_all_blocks",
        lambda value: f"{-value:+.0%}",
    ),
}
"""Column → the figure that it shows, and how it is written."""

_COMPARED = tuple(RIVALS[word] for word in ("whole", "strict", "language", "dense"))

SWITCHES: Mapping[str, tuple[Field, str]] = {
    "a cold switch until ready": ("ready", OURS),
    "a cold switch until the first output": ("first_output", LOADING),
}
"""What is timed for each pair of tasks → the field of samples, and which of our rows is compared."""

OTHERS: Mapping[str, tuple[Value, Callable[[float], str], str]] = {
    # Not the waiting alone: what is loaded anew in every forward would count as a forward.
    "a visit of the trace until its output": (lambda row: _visit(row), lambda value: ms(value), LOADING),
    "a warm forward": (
        lambda row: median(row.found.forwards) if row.found else None,
        lambda value: ms(value),
        OURS,
    ),
    "weights in memory": (
        lambda row: float(row.found.memory.weights) if row.found and row.found.memory.weights else None,
        lambda value: format_size(value),
        OURS,
    ),
    "charged to the group, peak": (
        lambda row: None if row.peak_memory is None else float(row.peak_memory),
        lambda value: format_size(value),
        OURS,
    ),
}
"""What else less is better of → its value in a row, how it is written, and which of our rows is compared.

It is always the same one: the lesser of two rows is one that had luck. No weights at all in memory is no value.
"""


_BACKENDS = {"native": "native code"}


@dataclass(frozen=True)
class _Entry:
    """A row in one comparison: the least ``rank`` wins."""

    rank: float
    row: Row
    shown: str

    @property
    def is_ours(self) -> bool:
        return self.row.method in (OURS, LOADING)

    @property
    def is_rival(self) -> bool:
        """Whether it stands for another way than ours: a bundle that never loads does, whoever runs it."""
        return self.row.method in NEVER_LOAD.values() or not self.row.method.startswith(OURS)

    @property
    def told(self) -> str:
        """The value, and what computed."""
        assert self.row.found is not None
        backend = self.row.found.backend
        return f"{self.shown}, {_BACKENDS.get(backend, backend)}"


def winners(contests: Mapping[str, Contest]) -> str:
    """Who is best at what, and how we compare: the table that names what beats us."""
    lines = []
    for name, contest in contests.items():
        for what, entries in _comparisons(contest):
            own = [entry for entry in entries if entry.is_ours]
            if not own or len(entries) == 1:
                continue
            loading = [entry for entry in entries if entry.row.method not in NEVER_LOAD.values()]
            lines.append([name, what, _best(entries), _best(loading), own[0].told])
    return table(["contest", "what is compared (less is better)", "best", "best of those that load", "ours"], lines)


def _comparisons(contest: Contest) -> Iterable[tuple[str, list[_Entry]]]:
    for what, (field, which) in SWITCHES.items() if contest.cold else ():
        yield what, _by_pairs(contest, field, _ours(contest, which))
    for what, (value, form, which) in OTHERS.items():
        rows = [row for row in (_ours(contest, which), *_rivals(contest)) if row is not None]
        known = [(found, row) for row in rows if (found := value(row)) is not None]
        yield what, [_Entry(found, row, form(found)) for found, row in known]


def _ours(contest: Contest, which: str) -> Row | None:
    return contest.row(which) or contest.row(OURS)


def _rivals(contest: Contest) -> list[Row]:
    return [row for row in contest.comparable if row.room == 1.0 and row.method not in (OURS, LOADING)]


def _by_pairs(contest: Contest, field: Field, ours: Row | None) -> list[_Entry]:
    """By how much longer or shorter others take over the pairs that both have; their times are means over these."""
    if ours is None or not (own := ours.medians(field)):
        return []
    entries = [_Entry(1.0, ours, ms(fmean(own.values())))]
    for row in _rivals(contest):
        if (ratio := speedup(row, ours, field)) is not None:
            common = [value for pair, value in row.medians(field).items() if pair in own]
            pairs = f" ({len(common)} of {len(own)} pairs)" if len(common) < len(own) else ""
            entries.append(_Entry(ratio["mean"], row, ms(fmean(common)) + pairs))
    return entries


def _visit(row: Row) -> float | None:
    return None if row.found is None or row.mean_waited is None else row.mean_waited + median(row.found.forwards)


def _best(entries: Sequence[_Entry]) -> str:
    """The method with the least value; in bold if it isn't ours, else with the next one."""
    ranked = sorted(entries, key=lambda entry: entry.rank)
    best = ranked[0]
    if not best.is_ours:
        return f"**{best.row.label}**, {best.told}"
    behind = [entry for entry in ranked if entry.is_rival]
    return f"ours; next {behind[0].row.label}, {behind[0].told}" if behind else "ours"


def headlines(contests: Mapping[str, Contest]) -> str:
    """A line for each contest, with the pairs that every one of its speed-ups rests on."""
    lines = [
        [
            name,
            contest.facts.dtype,
            f"{contest.facts.mean_overlap:.2f}",
            switch_ms(contest),
            *(form(contest.figures[key]) if _counts(contest, key) else "–" for key, form in HEADLINES.values()),
            _pairs(contest),
        ]
        for name, contest in contests.items()
    ]
    return table(["contest", "pages", "overlap", "a switch", *HEADLINES, "pairs"], lines)


def switch_ms(contest: Contest) -> str:
    """Until ready, the mean over all pairs that we were measured of."""
    ours = contest.row(OURS) if contest.cold else None
    found = ours.medians("ready") if ours is not None else {}
    return ms(fmean(found.values())) if found else "–"


def _counts(contest: Contest, key: str) -> bool:
    return key in contest.figures and (contest.cold or not key.startswith("switch."))


def _pairs(contest: Contest) -> str:
    """The fewest ordered pairs of which a method in the headlines was measured, of how many there are."""
    compared = [row for name in (OURS, *_COMPARED) if (row := contest.row(name)) is not None]
    tasks = len(contest.facts.tasks)
    return f"{min((len(row.medians('ready')) for row in compared), default=0)} of {tasks * (tasks - 1)}"
