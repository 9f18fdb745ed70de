"""``simulate``: how long the switches of a trace would wait on a device that needn't be there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.options import Budget, BundlePaths, Json, Quiet, Storage, bounded, finite
from weightpager.cli.progress import progress
from weightpager.config import parse_bandwidth, stated_size
from weightpager.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from weightpager.bundle import Bundle
    from weightpager.simulate.routing_comparison import Routed
    from weightpager.simulate.sizing import PrefetchPays, SwitchWaits
    from weightpager.simulate.waits import Waits
    from weightpager.store import StorageModel
    from weightpager.trace_file import Visit

_SWITCHES, _DWELL, _COMPUTE = 500, 1.0, 50.0
"""Where nothing is stated: switches of a trace, seconds between two, milliseconds that a request computes."""


def simulate(
    bundles: BundlePaths,
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
        typer.Option(
            metavar="MS", min=0, callback=finite, help="Find the smallest budget whose mean wait is no longer."
        ),
    ] = None,
    switches: Annotated[
        int | None, typer.Option(min=1, help=f"Length of a trace given by name. Default: {_SWITCHES}.")
    ] = None,
    dwell: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            callback=finite,
            help=f"Mean seconds between switches of a trace given by name. Default: {_DWELL:g}.",
        ),
    ] = None,
    replicas: Annotated[
        int, typer.Option(metavar="N", min=1, help="Servers, each with the budget; compare ways to route requests.")
    ] = 1,
    compute: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            min=0,
            callback=bounded,
            help=f"How long a request computes, with --replicas, beside its switch. Default: {_COMPUTE:g}.",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replay a trace of switches in virtual time, to size a device before it is bought; loads nothing.

    Policy and bookkeeping are those of the engine; only the storage is a model. A trace given by name has tasks of its
    own: the first one stands for the bundle's first task, and so on.

    With --replicas each line of the trace is a request, which comes at its time, however many others wait. Three ways
    to route requests are compared: round robin, one server after the other; affinity, to the server whose memory lacks
    least, as long as that is fair; and an oracle, which knows the whole trace.

    Several bundles share the budget, and lines of the trace name `bundle/task`, or `task` where one alone has it. Ways
    to use the budget are compared: shared, as `serve` does, without and with prefetching; split, where each bundle has
    a budget of its own, for its largest task and a part of the rest as large as what it could use of it; and whole
    models, of which those used least recently leave memory.

    Example: `weightpager simulate assistant.bundle --trace day.jsonl --budget 4MiB --storage 300MB/s --max-wait 20`
    """
    from weightpager.bundle import Bundle
    from weightpager.store import StorageModel

    if _is_file(trace) and (switches, dwell) != (None, None):
        raise ConfigError("--switches, --dwell: expected them for a trace given by name, found a file; leave them out")
    if len(bundles) > 1:
        if (replicas, compute, max_wait) != (1, None, None):
            raise ConfigError("--replicas, --compute, --max-wait: expected them for one bundle, found several")
        size, model = stated_size(budget, "budget"), StorageModel(parse_bandwidth(storage))
        _simulate_several(bundles, trace, switches, dwell, size, model, json=json, quiet=quiet)
        return
    opened = Bundle.open(bundles[0])
    device = _Device(opened, stated_size(budget, "budget"), StorageModel(parse_bandwidth(storage)))
    if replicas == 1:
        if compute is not None:
            raise ConfigError("--compute: expected it with --replicas, since switches alone are replayed without")
        visits = _visits(opened, trace, switches, dwell)
        _simulate_one(device, trace, visits, max_wait, json=json, quiet=quiet)
        return
    if max_wait is not None:
        raise ConfigError("--max-wait: expected it without --replicas, since it is about one engine; leave one out")
    requests = _requests(opened, trace, switches, dwell)
    seconds = (_COMPUTE if compute is None else compute) / 1e3
    _simulate_replicas(device, replicas, seconds, requests, json=json, quiet=quiet)


@dataclass(frozen=True)
class _Device:
    """What a trace is replayed on; a ``budget`` of None holds all of the bundle."""

    bundle: Bundle
    budget: int | None
    storage: StorageModel


def _simulate_one(
    device: _Device, trace: str, visits: Sequence[Visit], max_wait: float | None, *, json: bool, quiet: bool
) -> None:
    """Print what switches wait for, and the smallest budget that waits ``max_wait`` milliseconds or less."""
    from weightpager.simulate.sizing import Sizing

    smallest = None
    with progress(quiet or json) as stages:
        sizing = Sizing(device.bundle, visits, device.storage)
        waits = sizing.waits(device.budget, partial(stages, "replay"))
        pays = sizing.prefetch_pays(device.budget, waits, partial(stages, "find where prefetching pays"))
        if max_wait is not None:
            smallest = sizing.smallest_budget(max_wait / 1e3, partial(stages, "find a budget"))
    slots = sizing.slots(device.budget)
    if json:
        found = {"visits": len(visits), "slots": slots, "waiting": waits, "prefetch_pays": pays}
        output.print_json(found | {"smallest_budget": smallest})
        return
    _print_waits(f"{len(visits) - 1} switches of {trace}", slots, len(device.bundle.pages), waits)
    if pays is not None:
        output.say(_where_prefetch_pays(pays))
    if smallest is not None:
        output.say(f"smallest budget that waits {max_wait:g} ms or less: {output.enough(smallest)} ({smallest} bytes)")


def _simulate_several(
    paths: Sequence[Path],
    trace: str,
    switches: int | None,
    dwell: float | None,
    budget: int | None,
    storage: StorageModel,
    *,
    json: bool,
    quiet: bool,
) -> None:
    """Print what switches between tasks of several bundles wait for, and read, under each policy."""
    from weightpager.cli.commands.several_bundles import SeveralBundles
    from weightpager.simulate.sharing_comparison import compare
    from weightpager.trace_file import read_timed_visits

    several = SeveralBundles(paths)
    if _is_file(trace):
        meant = several.short_names
        visits = read_timed_visits(trace, [*several.tasks, *meant], meant)
    else:
        visits = _named("the bundles", several.tasks, trace, switches, dwell)
    with progress(quiet or json) as stages:
        found = compare(several.bundles, visits, budget, storage, partial(stages, "replay"))
    if json:
        output.print_json({"visits": len(visits), "waiting": found.waits, "smallest_budgets": found.too_small})
        return
    output.table(
        f"{len(visits) - 1} switches of {trace} between tasks of {len(paths)} bundles",
        [*_JUDGED, "loaded", "woke"],
        [[*_judged(row), output.size(row.bytes_read), row.wakings] for row in found.waits],
    )
    output.explain("without a wait", "woke")
    for policy, smallest in found.too_small.items():
        output.say(f"note: {policy}: the budget is too small; {output.enough(smallest)} would do")


def _where_prefetch_pays(found: PrefetchPays) -> str:
    """Why prefetching gains little or nothing, and what would change that."""
    beside = "no page has" if not found.spare_pages else f"{found.spare_pages} pages have"
    why = f"note: prefetching saves {max(0.0, found.saved):.0%} of the waiting: {beside} room beside the largest task"
    more = None if found.budget is None else f"with `--budget {output.enough(found.budget).replace(' ', '')}` or more"
    slower = None if found.storage is None else f"on storage of {output.bandwidth(found.storage)} or slower"
    ways = " or ".join(filter(None, (more, slower)))
    if not ways:
        slowest = output.bandwidth(found.slowest)
        return f"{why}. No larger budget, and no storage down to {slowest}, makes that a tenth on this trace."
    return f"{why}. It saves a tenth or more {ways}."


def _simulate_replicas(
    on: _Device, replicas: int, compute: float, requests: Sequence[Visit], *, json: bool, quiet: bool
) -> None:
    """Print what each way to route requests costs, each of which computes for ``compute`` seconds."""
    from weightpager.simulate.replica import ServerModel
    from weightpager.simulate.routing_comparison import RoutingComparison
    from weightpager.simulate.simulator import Device, Simulator
    from weightpager.simulate.sizing import slots_of

    simulator = Simulator(on.bundle)
    slots = slots_of(on.bundle, on.budget, simulator.largest_task)
    comparison = RoutingComparison(simulator, requests, Device(slots, on.storage), ServerModel(compute))
    with progress(quiet or json) as stages:
        routed = comparison.compare(replicas, partial(stages, "replay"))
    if json:
        output.print_json({"requests": len(requests), "replicas": replicas, "slots": slots, "routing": routed})
    else:
        _print_routing(f"{len(requests)} requests, {replicas} replicas", slots, len(on.bundle.pages), routed)


def _print_routing(title: str, slots: int, pages: int, routed: Sequence[Routed]) -> None:
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
            for row in routed
        ],
    )
    output.explain("affinity", "oracle")
    if slots >= pages:
        output.say("note: all pages fit into each, which loads them once; try a smaller --budget.")


def _print_waits(title: str, slots: int, pages: int, waits: Sequence[SwitchWaits]) -> None:
    output.table(
        f"{title}, room for {slots} of {pages} pages",
        [*_JUDGED, "there in time", "in vain"],
        [[*_judged(row), f"{row.hit_rate:.0%}", output.size(row.wasted_bytes)] for row in waits],
    )
    output.explain("without a wait", "there in time", "in vain")
    if slots >= pages:
        output.say("note: all pages fit, so each is loaded once, and nearly no switch waits; try a smaller --budget.")


_JUDGED = ("", "mean wait", "median", "95 %", "99 %", "without a wait", "loaded per switch")
"""Headings of `_judged`."""


def _judged(row: Waits) -> list[str]:
    """What every policy has in a table."""
    times = map(_wait, (row.mean_ms, row.median_ms, row.p95_ms, row.p99_ms))
    return [row.policy, *times, f"{row.without_wait:.0%}", output.size(row.bytes_per_switch)]


def _wait(milliseconds: float) -> str:
    return f"{milliseconds:.1f} ms" if milliseconds >= 0.05 or not milliseconds else "< 0.05 ms"


def _requests(bundle: Bundle, trace: str, switches: int | None, dwell: float | None) -> Sequence[Visit]:
    """Every line of a trace file, or the visits of a trace by name."""
    from weightpager.trace_file import read_visits

    if not _is_file(trace):
        return _named(str(bundle.path), list(bundle.tasks), trace, switches, dwell)
    requests = read_visits(trace, tuple(bundle.tasks), timed=True)
    if not requests:
        raise ConfigError(f"{trace}: expected at least one request, found none")
    return requests


def _visits(bundle: Bundle, trace: str, switches: int | None, dwell: float | None) -> tuple[Visit, ...]:
    from weightpager.trace_file import read_timed_visits

    if _is_file(trace):
        return read_timed_visits(trace, tuple(bundle.tasks))
    return _named(str(bundle.path), list(bundle.tasks), trace, switches, dwell)


def _is_file(trace: str) -> bool:
    from weightpager_lab.traces import TRACES

    if trace in TRACES:
        return False
    if not os.path.lexists(trace):
        raise ConfigError(f"trace: expected a file, or one of {', '.join(TRACES)}; found no file at {trace}")
    return True


def _named(where: str, names: list[str], trace: str, switches: int | None, dwell: float | None) -> tuple[Visit, ...]:
    """A trace given by name, of tasks that are found there."""
    from weightpager_lab.trace import in_place_of
    from weightpager_lab.traces import TRACES

    if len(names) < 2:
        raise ConfigError(f"{where}: expected at least two tasks to switch between, found {len(names)}")
    return in_place_of(TRACES[trace], names, switches or _SWITCHES, _DWELL if dwell is None else dwell)
