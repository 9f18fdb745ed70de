"""``simulate``: how long the switches of a trace would wait on a device that needn't be there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.options import Budget, BundlePath, Json, Quiet, Storage
from weightpager.cli.progress import progress
from weightpager.config import parse_bandwidth, parse_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from weightpager.bundle import Bundle
    from weightpager.progress import Steps
    from weightpager.simulate.routing_comparison import Routed
    from weightpager.simulate.sizing import Waiting
    from weightpager.store import StorageModel
    from weightpager.trace_file import Visit


def simulate(
    bundle: BundlePath,
    trace: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help='File of lines {"task": …, "time": …}; or assistant, drive, robot, mail, random, adversarial.',
            show_default=False,
        ),
    ],
    budget: Budget = None,
    storage: Storage = "1GB/s",
    max_wait: Annotated[
        float | None,
        typer.Option(metavar="MS", min=0, help="Find the smallest budget that waits no longer in the mean."),
    ] = None,
    switches: Annotated[int, typer.Option(min=1, help="Length of a trace given by name.")] = 500,
    dwell: Annotated[float, typer.Option(metavar="S", help="Mean seconds between its switches.")] = 1.0,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=1, help="Servers, each with the budget; compare ways to route requests.")
    ] = 1,
    compute: Annotated[
        float, typer.Option(metavar="MS", min=0, help="What a request computes, with --replicas, beside its switch.")
    ] = 50.0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replay a trace of switches in virtual time, to size a device before it is bought; loads nothing.

    Policy and bookkeeping are those of the engine; only the storage is a model. A trace given by name has tasks of its
    own: the first one stands for the bundle's first task, and so on.

    With --replicas each line of the trace is a request, which comes at its time whatever others wait. Requests go to
    one server after the other; by affinity, to the one whose memory lacks least, as long as that is fair; or as one
    sends them who knows the whole trace.

    Example: `weightpager simulate assistant.bundle --trace day.jsonl --budget 48MiB --storage 300MB/s --max-wait 20`
    """
    from weightpager.bundle import Bundle
    from weightpager.errors import ConfigError
    from weightpager.simulate.sizing import Sizing
    from weightpager.store import StorageModel

    opened, model = Bundle.open(bundle), StorageModel(parse_bandwidth(storage))
    size = None if budget is None else parse_size(budget)
    if replicas > 1:
        if max_wait is not None:
            raise ConfigError("--max-wait: expected it without --replicas, since it is about one engine; leave one out")
        requests = _requests(opened, trace, switches, dwell)
        servers = _Servers(replicas, compute / 1e3, size, model)
        with progress(quiet or json) as stages:
            slots, routed = _compared(opened, requests, servers, partial(stages, "replay"))
        if json:
            parts = {"requests": len(requests), "replicas": replicas, "slots": slots, "routing": routed}
            output.print_json(parts)
        else:
            _print_routing(f"{len(requests)} requests, {replicas} replicas", slots, len(opened.pages), routed)
        return
    visits = _visits(opened, trace, switches, dwell)
    smallest = None
    with progress(quiet or json) as stages:
        sizing = Sizing(opened, visits, model)
        found = sizing.waiting(size, partial(stages, "replay"))
        if max_wait is not None:
            smallest = sizing.smallest_budget(max_wait / 1e3, partial(stages, "find a budget"))
    if json:
        output.print_json(
            {"visits": len(visits), "slots": sizing.slots(size), "waiting": found, "smallest_budget": smallest}
        )
        return
    slots, pages = sizing.slots(size), len(opened.pages)
    _print(f"{len(visits) - 1} switches of {trace}, room for {slots} of {pages} pages", found)
    if slots >= pages:
        output.say("note: all pages fit, so each is loaded once, and nearly no switch waits; try a smaller --budget.")
    if smallest is not None:
        output.say(f"smallest budget that waits {max_wait:g} ms or less: {output.enough(smallest)} ({smallest} bytes)")


@dataclass(frozen=True)
class _Servers:
    """Servers that are all alike.

    Attributes:
        replicas: how many.
        compute: of a request, in seconds.
        budget: bytes of each; None for all that the bundle holds.
        storage: what reads cost.
    """

    replicas: int
    compute: float
    budget: int | None
    storage: StorageModel


def _compared(
    bundle: Bundle, requests: Sequence[Visit], servers: _Servers, steps: Steps
) -> tuple[int, Sequence[Routed]]:
    """The pages that a server has room for, and what each way to route requests costs."""
    from weightpager.simulate.replica import Service
    from weightpager.simulate.routing_comparison import RoutingComparison
    from weightpager.simulate.simulator import Device, Simulator
    from weightpager.simulate.sizing import slots_of

    simulator = Simulator(bundle)
    slots = slots_of(bundle, servers.budget, simulator.largest_task)
    device, service = Device(slots, servers.storage), Service(servers.compute)
    return slots, RoutingComparison(simulator, requests, device, service).compare(servers.replicas, steps)


def _print_routing(title: str, slots: int, pages: int, found: Sequence[Routed]) -> None:
    output.table(
        f"{title}, room for {slots} of {pages} pages in each",
        ["", "switches", "loaded", "of round robin's", "median wait", "99 %", "share of each"],
        [
            [
                row.way,
                row.switches,
                output.size(row.bytes_loaded),
                "-" if row.of_round_robin is None else f"{row.of_round_robin:.0%}",
                *map(_wait, (row.wait_p50_ms, row.wait_p99_ms)),
                " ".join(f"{share:.0%}" for share in row.shares),
            ]
            for row in found
        ],
    )
    output.explain("affinity", "oracle")
    if slots >= pages:
        output.say("note: all pages fit into each, which loads them once; try a smaller --budget.")


def _print(title: str, found: Sequence[Waiting]) -> None:
    output.table(
        title,
        ["", "mean wait", "median", "95 %", "99 %", "without a wait", "loaded per switch", "there in time", "in vain"],
        [
            [
                row.policy,
                *map(_wait, (row.mean_ms, row.median_ms, row.p95_ms, row.p99_ms)),
                f"{row.without_wait:.0%}",
                output.size(row.bytes_per_switch),
                f"{row.hit_rate:.0%}",
                output.size(row.wasted_bytes),
            ]
            for row in found
        ],
    )
    output.explain("without a wait", "there in time", "in vain")


def _wait(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 0.05 or not milliseconds else "< 0.05 ms"


def _requests(bundle: Bundle, trace: str, switches: int, dwell: float) -> Sequence[Visit]:
    """Every line of a trace file, or the visits of a trace by name."""
    from weightpager.errors import ConfigError
    from weightpager.trace_file import read_visits

    if not _is_file(trace):
        return _named(bundle, trace, switches, dwell)
    requests = read_visits(trace, tuple(bundle.tasks), timed=True)
    if not requests:
        raise ConfigError(f"{trace}: expected at least one request, found none")
    return requests


def _visits(bundle: Bundle, trace: str, switches: int, dwell: float) -> tuple[Visit, ...]:
    from weightpager.trace_file import read_timed_visits

    if _is_file(trace):
        return read_timed_visits(trace, tuple(bundle.tasks))
    return _named(bundle, trace, switches, dwell)


def _is_file(trace: str) -> bool:
    from weightpager.errors import ConfigError
    from weightpager.lab.traces import TRACES

    if trace in TRACES:
        return False
    if not os.path.lexists(trace):
        raise ConfigError(f"trace: expected a file, or one of {', '.join(TRACES)}; found no file at {trace}")
    return True


def _named(bundle: Bundle, trace: str, switches: int, dwell: float) -> tuple[Visit, ...]:
    from weightpager.errors import ConfigError
    from weightpager.lab.traces import TRACES
    from weightpager.lab.traces.trace import in_place_of

    names = list(bundle.tasks)
    if len(names) < 2:
        raise ConfigError(f"{bundle.path}: expected at least two tasks to switch between, found {len(names)}")
    return in_place_of(TRACES[trace], names, switches, dwell)
