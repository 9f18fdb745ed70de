"""A server under load: many clients at once, and one trace of arrivals, grouped by task and first come, first served.

    python -m benchmarks.serving --minutes 5 --json serving.json

Random weights in a small decoder's shape unless a bundle is named; every answer is compared with the engine's own.
"""

from __future__ import annotations

import asyncio
import json as json_file
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer

from benchmarks import provenance
from benchmarks.serving_clients import Answers, Ask, Ids, Tally, crowd, replay, watch
from weightpager.bench.synthetic_bundle import bundle_of, small
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import smallest_budget
from weightpager.config import cache_dir, format_size
from weightpager.engine import Engine
from weightpager.engine.architecture import read_config
from weightpager.server.scheduler import Policy
from weightpager.traces import TRACES

CLIENTS = 64
TEXTS = 24


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
        p50, p99: from asking to the answer.
        longest_wait: of any request in the queue.
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
    p50: float
    p99: float
    longest_wait: float
    longest_gap: float
    bound: float | None
    command: str
    commit: str


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    minutes: Annotated[float, typer.Option(help="That the crowd asks for.")] = 0.25,
    bundle: Annotated[Path | None, typer.Option(help="A bundle to serve; made up if absent.")] = None,
    rate: Annotated[float, typer.Option(help="Requests a second of the trace.")] = 20.0,
    patience: Annotated[float, typer.Option(help="Of the server that groups, and its linger on the trace.")] = 2.0,
    seed: int = 0,
) -> None:
    """Measure serving."""
    torch.set_num_threads(2)
    opened = bundle_of(small(), cache_dir() / "benchmarks" / "serving", typer.echo) if bundle is None else None
    served = Bundle.open(bundle) if bundle is not None else opened
    assert served is not None
    texts = _texts(served, random.Random(seed))
    answers = _answers(served, texts)
    seconds = 60 * minutes
    rows = [_crowd(served, texts, answers, seconds, patience, seed)]
    typer.echo(line(rows[-1]))
    asks = trace(list(served.tasks), texts, rate, seconds, seed)
    for order, linger in (("arrival", 0.0), ("grouped", 0.0), ("grouped", patience)):
        rows.append(_trace(served, asks, answers, order, patience, linger))
        typer.echo(line(rows[-1]))
    json.write_text(json_file.dumps([asdict(row) for row in rows], indent=1) + "\n", encoding="utf-8")


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


def line(row: Row) -> str:
    """A row as people read it."""
    bound = "" if row.bound is None else f" (bound {row.bound:.2f} s)"
    return (
        f"{row.what} {row.order} linger {row.linger:g}: {row.requests} answered, {row.refused} refused, {row.failed} "
        f"failed, {row.wrong} wrong; {row.switches} switches; p50 {row.p50:.2f} s, p99 {row.p99:.2f} s, waited at most "
        f"{row.longest_wait:.2f} s, no task for longer than {row.longest_gap:.2f} s{bound}; "
        f"{format_size(row.most_bytes)} of {format_size(row.budget)}"
    )


def _crowd(bundle: Bundle, texts: Sequence[Ids], answers: Answers, seconds: float, patience: float, seed: int) -> Row:
    drawn = random.Random(seed)
    tasks = list(bundle.tasks)
    asks = [[Ask(drawn.choice(tasks), 0, drawn.choice(texts)) for _ in range(50)] for _ in range(CLIENTS)]

    async def both(url: str) -> tuple[Tally, int]:
        return await asyncio.gather(crowd(url, asks, seconds, answers), watch(url, seconds))

    with _serving(bundle, "grouped", patience, 0.0) as url:
        tally, most = asyncio.run(both(url))
        return _row("crowd", "grouped", patience, 0.0, bundle, tally, most, _status(url), _text(url))


def _trace(bundle: Bundle, asks: Sequence[Ask], answers: Answers, order: str, patience: float, linger: float) -> Row:
    with _serving(bundle, order, patience, linger) as url:
        tally = asyncio.run(replay(url, asks, answers))
        found = _status(url)
        return _row("trace", order, patience, linger, bundle, tally, sum(found["memory"].values()), found, _text(url))


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
) -> Row:
    times = sorted(tally.seconds)
    return Row(
        what=what,
        order=order,
        patience=patience,
        linger=linger,
        budget=found["budget"],
        most_bytes=most,
        requests=len(times),
        refused=tally.refused,
        failed=len(tally.failed),
        wrong=tally.wrong,
        switches=found["switches_total"],
        p50=times[len(times) // 2],
        p99=times[int(0.99 * (len(times) - 1))],
        longest_wait=max(max(waits) for waits in tally.waits.values()),
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
    code = "from weightpager.cli import main; main()"
    options = {"--port": 0, "--budget": budget, "--order": order, "--patience": patience, "--linger": linger}
    flat = [str(word) for option in options.items() for word in option]
    command = [sys.executable, "-c", code, "serve", str(bundle.path), *flat, "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[0].rstrip("/")
        finally:
            process.terminate()


def _texts(bundle: Bundle, drawn: random.Random) -> list[Ids]:
    """Made of any tokens, some short, some long."""
    words = int(read_config(bundle).get_text_config().vocab_size)
    return [tuple(drawn.choices(range(words), k=drawn.randint(4, 48))) for _ in range(TEXTS)]


def _answers(bundle: Bundle, texts: Sequence[Ids]) -> Answers:
    """What an engine that has all memory says to each text alone."""
    found = {}
    with Engine.from_pretrained(bundle.path) as engine, torch.inference_mode():
        for task in bundle.tasks:
            with engine.task(task) as module:
                base: Any = module.base_model
                for text in texts:
                    hidden = base(input_ids=torch.tensor([text])).last_hidden_state
                    found[task, text] = hidden[0].float().mean(0).tolist()
    return found


def _status(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/status", trust_env=False, timeout=60).json()
    return found


def _text(url: str) -> str:
    return httpx.get(f"{url}/metrics", trust_env=False, timeout=60).text


if __name__ == "__main__":
    typer.run(main)
