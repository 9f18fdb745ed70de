"""A server under load: many clients at once, and one trace of arrivals, grouped by task and first come, first served.

    python -m benchmarks.serving --minutes 5 --json serving.json
    python -m benchmarks.serving --only trace --minutes 5 --p99 4 --json serving.json
    python -m benchmarks.serving --attack prompts --minutes 1 --json attack.json

Random weights in a small decoder's shape unless a bundle is named; every answer is compared with the engine's own. The
trace is played first come, first served, and then grouped, with lingers from none to half of the bound on the 99th
percentile. Both orders are held to that bound; of the groupings the one with the fewest switches counts. The last thing
printed is the table for ``docs/serving.md``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import torch
import typer

from benchmarks import row_file
from benchmarks.serving import attack as attacks
from benchmarks.serving.attack import AttackRow
from benchmarks.serving.clients import (
    Answers,
    Ask,
    Ids,
    Tally,
    crowd,
    made_texts,
    plain_metrics,
    replay,
    right_answers,
    serving,
    watch,
)
from weightpager.bundle import Bundle
from weightpager.config import cache_dir, format_size
from weightpager.runtime.budget import smallest_budget
from weightpager.server.scheduling.settings import Policy
from weightpager_lab.synthetic_bundle import bundle_of, small
from weightpager_lab.traces import TRACES

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


CLIENTS = 64
LINGERS = (0.0, 1 / 8, 1 / 4, 1 / 2)
"""Shares of the bound on the 99th percentile."""


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    minutes: Annotated[float, typer.Option(help="That the crowd asks for, and that each trace lasts.")] = 0.25,
    bundle: Annotated[Path | None, typer.Option(help="A bundle to serve; made up if absent.")] = None,
    rate: Annotated[float, typer.Option(help="Requests a second of the trace.")] = 20.0,
    p99: Annotated[
        float, typer.Option(help="Seconds in which 99 % of the trace must be answered, in any order.")
    ] = 4.0,
    patience: Annotated[float, typer.Option(help="Of the server.")] = 2.0,
    only: Annotated[Literal["crowd", "trace"] | None, typer.Option(help="Just one of the two.")] = None,
    attack: Annotated[
        Literal["prompts", "images"] | None, typer.Option(help="Clients that mean no good, beside 32 honest ones.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Of the server that is attacked, in seconds.")] = 15.0,
    source: Annotated[Path | None, typer.Option(help="Checkout whose server is attacked; this one if absent.")] = None,
    seed: int = 0,
) -> None:
    """Measure serving."""
    torch.set_num_threads(2)
    if attack is not None:
        attacked = attacks.attack(attack, 60 * minutes, timeout, source, seed)
        typer.echo(attacks.line(attacked))
        _write(json, [attacked])
        return
    opened = bundle_of(small(), cache_dir() / "benchmarks" / "serving", typer.echo) if bundle is None else None
    served = Bundle.open(bundle) if bundle is not None else opened
    assert served is not None
    texts = made_texts(served, random.Random(seed))
    answers = right_answers(served, texts)
    seconds = 60 * minutes
    rows = []
    if only != "trace":
        rows.append(_crowd(served, texts, answers, seconds, patience, seed))
        typer.echo(line(rows[-1]))
    if only != "crowd":
        asks = trace(list(served.tasks), texts, rate, seconds, seed)
        for order, linger in (("arrival", 0.0), *(("grouped", share * p99) for share in LINGERS)):
            rows.append(_trace(served, asks, answers, order, max(patience, linger), linger, p99))
            typer.echo(line(rows[-1]))
        typer.echo("\n" + table(rows))
    _write(json, rows)


def _write(path: Path, rows: Sequence[Row | AttackRow]) -> None:
    row_file.write(path, rows)


def trace(tasks: Sequence[str], texts: Sequence[Ids], rate: float, seconds: float, seed: int) -> list[Ask]:
    """Requests of many users of an assistant, each going through its chains of tasks on his own.

    The bundle's tasks take the parts of the assistant's in turn.
    """
    drawn = random.Random(seed)
    asks = []
    for user in range(CLIENTS):
        dwell = CLIENTS / rate
        start = drawn.uniform(0, dwell)
        walk = TRACES["assistant"](max(2, int(3 * seconds / dwell) + 2), dwell, seed * CLIENTS + user)
        part = {name: tasks[number % len(tasks)] for number, name in enumerate(walk.tasks)}
        asks += [Ask(part[visit.task], start + visit.start, drawn.choice(texts)) for visit in walk.visits]
    return sorted((ask for ask in asks if ask.at < seconds), key=lambda ask: ask.at)


def _crowd(bundle: Bundle, texts: Sequence[Ids], answers: Answers, seconds: float, patience: float, seed: int) -> Row:
    drawn = random.Random(seed)
    tasks = list(bundle.tasks)
    asks = [[Ask(drawn.choice(tasks), 0, drawn.choice(texts)) for _ in range(50)] for _ in range(CLIENTS)]

    async def both(url: str) -> tuple[Tally, int]:
        return await asyncio.gather(crowd(url, asks, seconds, answers), watch(url, seconds))

    with serving(bundle, _options(bundle, "grouped", patience, 0.0)) as (_, url):
        tally, most = asyncio.run(both(url))
        return _row("crowd", "grouped", patience, 0.0, bundle, tally, most, _status(url), plain_metrics(url))


def _trace(
    bundle: Bundle, asks: Sequence[Ask], answers: Answers, order: str, patience: float, linger: float, p99: float
) -> Row:
    async def both(url: str) -> tuple[Tally, int]:
        return await asyncio.gather(replay(url, asks, answers), watch(url, asks[-1].at if asks else 0.0))

    with serving(bundle, _options(bundle, order, patience, linger)) as (_, url):
        tally, most = asyncio.run(both(url))
        return _row("trace", order, patience, linger, bundle, tally, most, _status(url), plain_metrics(url), p99)


def _row(
    what: str,
    order: str,
    patience: float,
    linger: float,
    bundle: Bundle,
    tally: Tally,
    most: int,
    found: dict[str, Any],
    metrics: dict[str, float],
    p99_bound: float | None = None,
) -> Row:
    return Row(
        what=what,
        order=order,
        patience=patience,
        linger=linger,
        budget=found["budget"],
        most_bytes=most,
        requests=len(tally.seconds),
        refused=tally.refused,
        failed=len(tally.failed),
        wrong=tally.wrong,
        switches=found["switches_total"],
        p50=tally.p50,
        p99=tally.p99,
        p99_bound=p99_bound,
        longest_wait=tally.longest_wait,
        longest_gap=metrics["weightpager_longest_gap_seconds"],
        bound=_bound(patience, linger, len(bundle.tasks), metrics) if order == "grouped" else None,
        command=row_file.command("benchmarks.serving"),
        commit=row_file.commit(),
    )


def _bound(patience: float, linger: float, tasks: int, metrics: dict[str, float]) -> float:
    batch, switch = (metrics[f"weightpager_slowest_{what}_seconds"] for what in ("batch", "switch"))
    return Policy(patience=patience, linger=linger).longest_wait(tasks, batch, switch)


def _options(bundle: Bundle, order: str, patience: float, linger: float) -> dict[str, object]:
    """With room for the largest task and half as much again."""
    largest = max(len(bundle.pages_of(task)) for task in bundle.tasks)
    budget = smallest_budget(bundle) + largest // 2 * bundle.page_bytes
    asked = {"--budget": budget, "--order": order, "--patience": patience, "--linger": linger}
    return {**asked, "--log-level": "warning"}


def _status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/status", trust_env=False, timeout=60).json()
    return found


if __name__ == "__main__":
    typer.run(main)
