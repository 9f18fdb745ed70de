"""Where requests go that several servers could answer: what each way loads, in virtual time and in real engines.

    python -m benchmarks.placement --json placement.json

Four layers of Qwen2.5-0.5B, 18 tasks, a quarter of the blocks kept, random weights: this is about bytes and waiting
only. The traffic is made: users who each go through a voice assistant's chains of tasks. Waits are those of virtual
time. Real engines, each with a budget and a thread of its own, take the tasks in the order in which the simulated
replicas began them, and must load the same bytes in as many switches. The oracle isn't held to that: no engine evicts
as it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import provenance, row_file
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.config import EngineConfig, cache_dir
from weightpager.engine import Engine
from weightpager.routing import Fairness
from weightpager.simulate.replica import Replay, ServerModel
from weightpager.simulate.routing_comparison import AFFINITY, ROUND_ROBIN, Routed, RoutingComparison
from weightpager.simulate.simulator import Device, Simulator
from weightpager.store import StorageModel
from weightpager.trace_file import Visit
from weightpager_lab.synthetic_bundle import bundle_of, many_tasks
from weightpager_lab.traces.made import assistant

TASKS = 18
BANDWIDTH = 200e6
"""Bytes per second that a replica loads, in virtual time."""

COMPUTE = 0.05
"""Seconds of a request."""

DWELL = 1.0
"""Mean seconds between two requests of a user."""

USERS, FRACTIONS, REPLICAS = (1, 8, 16), (0.25, 0.5, 0.75), (2, 3)
WEIGHTS, SLACKS = (0.0, 0.125, 0.25, 0.5, 1.0), (1, 4, 16)
REAL = 300
"""Requests that real engines take."""


@dataclass(frozen=True)
class Row:
    """One way of routing requests.

    Attributes:
        users: whose requests these are.
        f: a replica has room for the largest task and this share of what all tasks together need more.
        replicas: how many.
        requests: in the trace.
        queue_weight, slack: of the affinity; None for other ways.
        routed: what was found in virtual time.
        real_bytes, real_switches: of real engines; None where none ran.
        cpu, command, commit: where the row comes from.
    """

    users: int
    f: float
    replicas: int
    requests: int
    queue_weight: float | None
    slack: int | None
    routed: Routed
    real_bytes: int | None
    real_switches: int | None
    cpu: str
    command: str
    commit: str


def main(
    json: Annotated[Path, typer.Option(help="File to write the rows to.")],
    requests: Annotated[int, typer.Option(help="Of each trace.")] = 3000,
    folder: Annotated[Path | None, typer.Option(help="Where the synthetic bundle is kept.")] = None,
    seed: int = 0,
) -> None:
    """Measure routing."""
    bundle = bundle_of(many_tasks(TASKS), folder or cache_dir() / "benchmarks" / "placement", typer.echo)
    bench = Bench(bundle, seed)
    rows = []
    for measured in (bench.ways(requests), bench.settings(requests), bench.real(REAL)):
        for row in measured:
            rows.append(row)
            typer.echo(line(row))
    row_file.write(json, rows)
    wrong = [row for row in rows if row.real_bytes is not None and not agrees(row)]
    if wrong:
        raise SystemExit(f"{len(wrong)} rows of real engines differ from the simulated ones")


class Bench:
    """A bundle, and traffic of its tasks.

    Args:
        bundle: of 18 tasks.
        seed: of the traffic.
    """

    def __init__(self, bundle: Bundle, seed: int) -> None:
        self._bundle = bundle
        self._seed = seed
        self._simulator = Simulator(bundle)

    def ways(self, count: int) -> Iterator[Row]:
        """All ways, for several users, budgets and numbers of replicas."""
        for users in USERS:
            requests = self.traffic(users, count)
            for f in FRACTIONS:
                for replicas in REPLICAS:
                    for routed in self._comparison(requests, f, Fairness()).compare(replicas):
                        settings = Fairness() if routed.way == AFFINITY else None
                        yield self._row(users, f, replicas, count, settings, routed)

    def settings(self, count: int) -> Iterator[Row]:
        """Affinity with other weights of the queue, and other bounds."""
        users, replicas = USERS[1], REPLICAS[0]
        requests = self.traffic(users, count)
        chosen = [replace(Fairness(), queue_weight=weight) for weight in WEIGHTS]
        chosen += [replace(Fairness(), slack=slack) for slack in SLACKS]
        for f in FRACTIONS[1:]:
            robin = self._comparison(requests, f, Fairness()).round_robin(replicas)
            for settings in chosen:
                comparison = self._comparison(requests, f, settings)
                routed = comparison.routed(AFFINITY, comparison.affinity(replicas), robin)
                yield self._row(users, f, replicas, count, settings, routed)

    def real(self, count: int) -> Iterator[Row]:
        """Simulated ways, and engines that do the same."""
        users, f = USERS[1], FRACTIONS[1]
        comparison = self._comparison(self.traffic(users, count), f, Fairness())
        for replicas in REPLICAS:
            robin, affinity = comparison.round_robin(replicas), comparison.affinity(replicas)
            for way, settings, replay in ((ROUND_ROBIN, None, robin), (AFFINITY, Fairness(), affinity)):
                routed = comparison.routed(way, replay, robin)
                loaded, switches = self._in_engines(replay, f)
                row = self._row(users, f, replicas, count, settings, routed)
                yield replace(row, real_bytes=loaded, real_switches=switches)

    def traffic(self, users: int, count: int) -> list[Visit]:
        """Requests of users who ask independently of each other; each comes a moment after the one before."""
        names = tuple(self._bundle.tasks)
        asked: list[Visit] = []
        for user in range(users):
            made = assistant(count // users + 1, DWELL, 1000 * self._seed + user)
            asked += [Visit(names[made.tasks.index(visit.task)], visit.start + user * DWELL) for visit in made.visits]
        return sorted(asked, key=lambda visit: visit.start)[:count]

    def _comparison(self, requests: Sequence[Visit], f: float, fairness: Fairness) -> RoutingComparison:
        device = Device(self._slots(f), StorageModel(BANDWIDTH))
        return RoutingComparison(self._simulator, requests, device, ServerModel(COMPUTE), fairness)

    def _slots(self, f: float) -> int:
        least, most = self._simulator.largest_task, self._simulator.all_pages
        return round(least + f * (most - least))

    def _in_engines(self, replay: Replay, f: float) -> tuple[int, int]:
        """Bytes and switches of engines that take the tasks of these replicas, all at once."""
        budget = footprint(self._bundle).total + self._slots(f) * self._bundle.page_bytes
        names = list(self._bundle.tasks)
        orders = [[names[one.task] for one in own] for own in replay.served]
        with ExitStack() as opened, ThreadPoolExecutor(len(orders)) as pool:
            engines = [opened.enter_context(Engine(self._bundle, EngineConfig(budget))) for _ in orders]
            list(pool.map(_take, engines, orders))
            reports = [engine.report() for engine in engines]
        switches = sum(one.from_task not in (None, one.to_task) for report in reports for one in report.switches)
        return sum(report.bytes_read for report in reports), switches

    def _row(
        self, users: int, f: float, replicas: int, requests: int, settings: Fairness | None, routed: Routed
    ) -> Row:
        weight, slack = (None, None) if settings is None else (settings.queue_weight, settings.slack)
        made = partial(Row, **provenance.origin("benchmarks.placement"))
        return made(users, f, replicas, requests, weight, slack, routed, None, None)


def _take(engine: Engine, tasks: Sequence[str]) -> None:
    for task in tasks:
        engine.activate(task)


def agrees(row: Row) -> bool:
    """Whether real engines loaded the simulated bytes in the simulated switches."""
    return (row.real_bytes, row.real_switches) == (row.routed.bytes_loaded, row.routed.switches)


def line(row: Row) -> str:
    """A row for people."""
    routed = row.routed
    settings = "" if row.queue_weight is None else f" weight {row.queue_weight:g} slack {row.slack}"
    ratio = "" if not routed.of_round_robin else f"{1 / routed.of_round_robin:6.2f} × fewer"
    real = "" if row.real_bytes is None else f"  engines: {'the same' if agrees(row) else row.real_bytes}"
    shares = " ".join(f"{share:.0%}" for share in routed.shares)
    return (
        f"{row.users:2} users  f {row.f:<4}  {row.replicas} replicas  {routed.way + settings:28} "
        f"{routed.switches:5} switches  {routed.bytes_loaded / 1e6:8.0f} MB {ratio}  "
        f"p50 {routed.wait_p50_ms:6.1f} ms  p99 {routed.wait_p99_ms:7.1f} ms  {shares}{real}"
    )


if __name__ == "__main__":
    typer.run(main)
