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
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import torch
import typer

from benchmarks import provenance, row_file
from benchmarks.serving import attack as attacks
from benchmarks.serving.attack import AttackRow
from benchmarks.serving.clients import Answers, Ask, Ids, Tally, crowd, replay, watch
from benchmarks.serving.rows import Row, line, table
from benchmarks.serving.texts import made_texts, right_answers
from weightpager.bundle import Bundle
from weightpager.config import cache_dir
from weightpager.runtime.budget import smallest_budget
from weightpager.server.scheduling.settings import Policy
from weightpager_lab.synthetic_bundle import bundle_of, small
from weightpager_lab.traces import TRACES

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

    with _serving(bundle, "grouped", patience, 0.0) as url:
        tally, most = asyncio.run(both(url))
        return _row("crowd", "grouped", patience, 0.0, bundle, tally, most, _status(url), _text(url))


def _trace(
    bundle: Bundle, asks: Sequence[Ask], answers: Answers, order: str, patience: float, linger: float, p99: float
) -> Row:
    async def both(url: str) -> tuple[Tally, int]:
        return await asyncio.gather(replay(url, asks, answers), watch(url, asks[-1].at if asks else 0.0))

    with _serving(bundle, order, patience, linger) as url:
        tally, most = asyncio.run(both(url))
        return _row("trace", order, patience, linger, bundle, tally, most, _status(url), _text(url), p99)


def _row(
    what: str,
    order: str,
    patience: float,
    linger: float,
    bundle: Bundle,
    tally: Tally,
    most: int,
    found: dict[str, Any],
    metrics: str,
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
        longest_gap=_plain_metrics(metrics)["weightpager_longest_gap_seconds"],
        bound=_bound(patience, linger, len(bundle.tasks), metrics) if order == "grouped" else None,
        command=provenance.command("benchmarks.serving"),
        commit=provenance.commit(),
    )


def _bound(patience: float, linger: float, tasks: int, metrics: str) -> float:
    slowest = _plain_metrics(metrics)
    policy = Policy(patience=patience, linger=linger)
    return policy.longest_wait(
        tasks, slowest["weightpager_slowest_batch_seconds"], slowest["weightpager_slowest_switch_seconds"]
    )


def _plain_metrics(metrics: str) -> dict[str, float]:
    """The server's metrics without labels."""
    rows = [row.split() for row in metrics.splitlines() if not row.startswith("#") and "{" not in row]
    return {name: float(value) for name, value in rows}


@contextmanager
def _serving(bundle: Bundle, order: str, patience: float, linger: float) -> Iterator[str]:
    """The command in a process of its own, with room for the largest task and half as much again."""
    largest = max(len(bundle.pages_of(task)) for task in bundle.tasks)
    budget = smallest_budget(bundle) + largest // 2 * bundle.page_bytes
    options = {"--port": 0, "--budget": budget, "--order": order, "--patience": patience, "--linger": linger}
    flat = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-m", "weightpager", "serve", str(bundle.path), *flat, "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0].rstrip("/")
        finally:
            process.terminate()


def _status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/status", trust_env=False, timeout=60).json()
    return found


def _text(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text
