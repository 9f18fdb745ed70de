"""``simulate``: how long the switches of a trace would wait on a device that needn't be there."""

from __future__ import annotations

import os
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
    from weightpager.simulate.sizing import Waiting
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
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Replay a trace of switches in virtual time, to size a device before it is bought; loads nothing.

    Policy and bookkeeping are those of the engine; only the storage is a model. A trace given by name has tasks of its
    own: the first one stands for the bundle's first task, and so on.

    Example: `weightpager simulate assistant.bundle --trace day.jsonl --budget 48MiB --storage 300MB/s --max-wait 20`
    """
    from weightpager.bundle import Bundle
    from weightpager.simulate.sizing import Sizing
    from weightpager.store import StorageModel

    opened = Bundle.open(bundle)
    visits = _visits(opened, trace, switches, dwell)
    size = None if budget is None else parse_size(budget)
    smallest = None
    with progress(quiet or json) as stages:
        sizing = Sizing(opened, visits, StorageModel(parse_bandwidth(storage)))
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


def _visits(bundle: Bundle, trace: str, switches: int, dwell: float) -> tuple[Visit, ...]:
    from weightpager.errors import ConfigError
    from weightpager.lab.traces import TRACES
    from weightpager.lab.traces.trace import in_place_of
    from weightpager.trace_file import read_timed_visits

    if trace not in TRACES:
        if not os.path.lexists(trace):
            raise ConfigError(f"trace: expected a file, or one of {', '.join(TRACES)}; found no file at {trace}")
        return read_timed_visits(trace, tuple(bundle.tasks))
    names = list(bundle.tasks)
    if len(names) < 2:
        raise ConfigError(f"{bundle.path}: expected at least two tasks to switch between, found {len(names)}")
    return in_place_of(TRACES[trace], names, switches, dwell)
