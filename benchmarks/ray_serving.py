"""Two servers on Ray, 64 clients of an assistant: what affinity loads, and what servers that die cost.

    python -m benchmarks.ray_serving --json ray-serving.json

Four layers of Qwen2.5-0.5B, 18 tasks, a quarter of the blocks kept, random weights: this is about bytes and waiting
only. Each client goes through its own chains of tasks; requests come at their times, whether others have been answered
or not, and every answer is compared with the engine's own. Each way of routing gets servers of its own, started anew,
so that nothing is in memory. The last run kills a server every 20 seconds.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from benchmarks import row_file
from benchmarks.serving.__main__ import trace
from benchmarks.serving.clients import Answers, Ask, Tally, made_texts, replay, right_answers
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import cache_dir
from weightpager.ray.application import FAIRNESS, app
from weightpager.ray.run import served
from weightpager.ray.task_router import Routing
from weightpager.routing import Fairness
from weightpager.simulate.simulator import Simulator
from weightpager_lab.synthetic_bundle import bundle_of, many_tasks

TASKS, REPLICAS = 18, 2
FRACTIONS = (0.25, 0.5, 0.75)
KILL_EVERY = 20.0
"""Seconds."""


@dataclass(frozen=True)
class Row:
    """One run. Times in seconds.

    Attributes:
        routing: how the router chooses.
        f: a server has room for the largest task and this share of what all tasks together need more.
        queue_weight: of the affinity; None for round robin.
        kills: servers that were killed.
        requests, refused, failed, wrong: answered; answered 429; anything else; answers that aren't the engine's.
        bytes_loaded, switches: of all servers, after they were opened.
        p50, p99: from asking to the answer; None where nothing was answered.
        command, commit: that print the row.
    """

    routing: Routing
    f: float
    queue_weight: float | None
    kills: int
    requests: int
    refused: int
    failed: int
    wrong: int
    bytes_loaded: int
    switches: int
    p50: float | None
    p99: float | None
    command: str
    commit: str


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    minutes: Annotated[float, typer.Option(help="That each trace lasts.")] = 2.0,
    rate: Annotated[float, typer.Option(help="Requests a second.")] = 10.0,
    fraction: Annotated[list[float] | None, typer.Option(help="Only these shares of the memory.")] = None,
    kill: Annotated[bool, typer.Option(help="Kill servers, too.")] = True,
    weight: Annotated[list[float] | None, typer.Option(help="Of the queue, of the affinity.")] = None,
    seed: int = 0,
) -> None:
    """Measure serving on Ray."""
    bundle = bundle_of(many_tasks(TASKS), cache_dir() / "benchmarks" / "placement", typer.echo)
    texts = made_texts(bundle, random.Random(seed))
    answers = right_answers(bundle, texts)
    asks = trace(list(bundle.tasks), texts, rate, 60 * minutes, seed)
    rows = []
    for f in fraction or FRACTIONS:
        robin = _run(bundle, "round-robin", f, None, asks, answers)
        ours = [_run(bundle, "affinity", f, each, asks, answers) for each in weight or [FAIRNESS.queue_weight]]
        for row in (robin, *ours):
            rows.append(row)
            typer.echo(line(row, robin))
    if kill:
        rows.append(_run(bundle, "affinity", FRACTIONS[-1], FAIRNESS.queue_weight, asks, answers, KILL_EVERY))
        typer.echo(line(rows[-1]))
    row_file.write(json, rows)


def _run(
    bundle: Bundle,
    routing: Routing,
    f: float,
    weight: float | None,
    asks: Sequence[Ask],
    answers: Answers,
    every: float | None = None,
) -> Row:
    simulator = Simulator(bundle)
    slots = round(simulator.largest_task + f * (simulator.all_pages - simulator.largest_task))
    budget = footprint(bundle).total + slots * bundle.page_bytes
    fairness = FAIRNESS if weight is None else Fairness(queue_weight=weight)
    application = app(bundle.path, budget, replicas=REPLICAS, routing=routing, fairness=fairness, backend="native")
    with served(application, "local", "127.0.0.1", 0, REPLICAS) as port:
        url = f"http://127.0.0.1:{port}"
        before = _standings(url)
        with _killing(url, every) as killed:
            tally = asyncio.run(replay(url, asks, answers))
        after = _standings(url)
    return _row(routing, f, weight, len(killed), tally, before, after)


def _row(
    routing: Routing, f: float, weight: float | None, kills: int, tally: Tally, before: list[Any], after: list[Any]
) -> Row:
    def grown(name: str) -> int:
        return sum(int(one[name]) for one in after) - sum(int(one[name]) for one in before)

    return Row(
        routing=routing,
        f=f,
        queue_weight=weight,
        kills=kills,
        requests=len(tally.seconds),
        refused=tally.refused,
        failed=len(tally.failed),
        wrong=tally.wrong,
        bytes_loaded=0 if kills else grown("bytes_read"),  # what a server that died had loaded is forgotten
        switches=0 if kills else grown("switches"),
        p50=tally.p50,
        p99=tally.p99,
        command=row_file.command("benchmarks.ray_serving"),
        commit=row_file.commit(),
    )


@contextmanager
def _killing(url: str, every: float | None) -> Iterator[list[int]]:
    """Kill one of the servers again and again inside the block; yields the process ids of those that were."""
    killed: list[int] = []
    over = threading.Event()

    def kill() -> None:
        while every is not None and not over.wait(every):
            alive = [one["pid"] for one in _standings(url) if one["pid"] not in killed]
            os.kill(alive[len(killed) % len(alive)], signal.SIGKILL)
            killed.append(alive[len(killed) % len(alive)])

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def _standings(url: str) -> list[dict[str, Any]]:
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        while len(found := client.get("/replicas").json()) < REPLICAS:
            client.get("/v1/models")  # the gateway learns of servers as it sends requests
        return list(found)


def line(row: Row, robin: Row | None = None) -> str:
    """A row for people; bytes beside round robin's."""
    lost = f"{row.refused} refused, {row.failed} failed, {row.wrong} wrong"
    ratio = ""
    if robin is not None and row is not robin and row.bytes_loaded:
        ratio = f" ({robin.bytes_loaded / row.bytes_loaded:.2f} × fewer)"
    loaded = f"{row.switches:5} switches {row.bytes_loaded / 1e6:8.0f} MB{ratio}"
    if row.kills:
        loaded = f"{row.kills} killed"
    way = row.routing if row.queue_weight is None else f"{row.routing} {row.queue_weight:g}"
    return f"f {row.f:<4} {way:14} {row.requests:5} answered, {lost}  {loaded}  p50 {_ms(row.p50)}  p99 {_ms(row.p99)}"


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    typer.run(main)
