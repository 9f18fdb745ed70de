"""What the benchmark of serving has found: its rows, and what they say as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightpager.config import format_size

ASKED = 3.0
"""How many times fewer switches grouping should make."""


@dataclass(frozen=True)
class Row:
    """One run. Times in seconds.

    Attributes:
        what: ``crowd``: clients that ask again as soon as they are answered; ``trace``: requests at given times.
        order: how the server chooses.
        patience, linger: of the server's policy.
        budget, most_bytes: for weights, and what they took at most.
        requests, refused, failed, wrong: answered; answered 429; anything else; answers that aren't the engine's.
        switches: that the server made.
        p50, p99: from asking to the answer; None where nothing was answered.
        p99_bound: that is asked of every order of a trace; None for the crowd.
        longest_wait: of any request in the queue; None where nothing was answered.
        longest_gap: that a task with waiting requests went unserved.
        bound: on that, by the policy, the slowest batch and the slowest switch; None where there is none.
        command, commit: that print the row.
    """

    what: str
    order: str
    patience: float
    linger: float
    budget: int
    most_bytes: int
    requests: int
    refused: int
    failed: int
    wrong: int
    switches: int
    p50: float | None
    p99: float | None
    p99_bound: float | None
    longest_wait: float | None
    longest_gap: float
    bound: float | None
    command: str
    commit: str

    @property
    def keeps(self) -> bool:
        """Whether every request was answered rightly, and 99 % of them within the bound."""
        lost = self.refused + self.failed + self.wrong
        return not lost and self.p99 is not None and (self.p99_bound is None or self.p99 <= self.p99_bound)


def line(row: Row) -> str:
    """A row as people read it while others still run."""
    bound = "" if row.bound is None else f" (bound {row.bound:.2f} s)"
    return (
        f"{row.what} {row.order} linger {row.linger:g}: {row.requests} answered, {row.refused} refused, {row.failed} "
        f"failed, {row.wrong} wrong; {row.switches} switches; p50 {_s(row.p50)}, p99 {_s(row.p99)}, waited at most "
        f"{_s(row.longest_wait)}, no task for longer than {row.longest_gap:.2f} s{bound}; "
        f"{format_size(row.most_bytes)} of {format_size(row.budget)}"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows of the trace as Markdown, and what they come to."""
    found = [row for row in rows if row.what == "trace"]
    columns = ("order", "linger", "answered; refused, failed, wrong", "switches", "median", "99 %", "longest gap")
    head = [f"| {' | '.join(columns)} | within the bound |", "|---|---:|---|---:|---:|---:|---:|---|"]
    return "\n".join([*head, *map(_cells, found), "", verdict(found)])


def verdict(rows: Sequence[Row]) -> str:
    """First come against the grouping that makes the fewest switches, both within the bound."""
    bound = f"{rows[0].p99_bound:g} s for 99 %"
    within = {order: [row for row in rows if row.order == order and row.keeps] for order in ("arrival", "grouped")}
    if not within["grouped"]:
        return f"No grouping keeps within {bound}."
    grouped = min(within["grouped"], key=lambda row: row.switches)
    words = f"grouped, with `--linger {grouped.linger:g}`, {grouped.switches}"
    if not within["arrival"]:
        return f"First come doesn't keep within {bound}; {words} switches."
    first = within["arrival"][0]
    ratio = first.switches / max(1, grouped.switches)
    return (
        f"Within {bound}: first come makes {first.switches} switches; {words}: {ratio:.1f} × fewer ({ASKED:g} asked)."
    )


def _cells(row: Row) -> str:
    order = "first come" if row.order == "arrival" else "grouped"
    linger = "" if row.order == "arrival" else f"{row.linger:g} s"
    answered = f"{row.requests:,}; {row.refused}, {row.failed}, {row.wrong}"
    times = f"{_s(row.p50)} | {_s(row.p99)} | {_s(row.longest_gap)}"
    return f"| {order} | {linger} | {answered} | {row.switches} | {times} | {'yes' if row.keeps else '**no**'} |"


def _s(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.2f} s"
