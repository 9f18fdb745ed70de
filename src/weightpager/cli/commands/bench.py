"""``weightpager bench``: weightpager beside what people use today, measured on this machine."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from weightpager.cli import output
from weightpager.cli.options import Json, Quiet, explicit_option, extra
from weightpager.cli.output import check_writable, write_file
from weightpager.cli.progress import progress
from weightpager.config import cache_dir, parse_bandwidth, stated_size

if TYPE_CHECKING:
    from weightpager_lab.companions import Name
    from weightpager_lab.contest.plan import Plan
    from weightpager_lab.contest.result import Contest, Limits, Row

Size = Annotated[str | None, typer.Option(metavar="SIZE", help="Most memory of a process, page cache included.")]


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="[BUNDLE]",
            help="Bundle directory. Default: the demo's if it has been compiled, else random weights of a real shape.",
            show_default=False,
        ),
    ] = None,
    memory: Size = None,
    storage: Annotated[
        str | None, typer.Option(metavar="SIZE/s", help="Most bytes read per second, such as 300MB/s.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="How many CPUs.")] = None,
    unaligned: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The same tasks, compiled with 'alignment: 0'.")
    ] = None,
    all_blocks: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="The same tasks, compiled with 'sparsity: 0' and 'recover: none'."),
    ] = None,
    one_mask: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The same tasks, compiled with 'alignment: inf'.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="Only these methods.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Times that every ordered pair of tasks is measured.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the order of visits and the prompts.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Less than three minutes: fewer methods and repeats.")] = False,
    out: Annotated[
        Path | None, explicit_option("--out", "-o", metavar="FILE", help="File to write everything to, as JSON.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure task switches, memory and speed of weightpager and of what people use today, side by side.

    Every method runs in a process of its own, under the same limits; every switch is cold, and that is checked. The
    rivals' checkpoints are written beside the bundle and removed again. Rivals need `weightpager[bench]`: without it,
    as on a device, weightpager's own rows are measured.

    Example: `weightpager bench assistant.bundle --memory 1GiB --storage 300MB/s --cpus 2 --out bench.json`
    """
    if out is not None:
        check_writable("out", out)
    from weightpager_lab.contest.result import Limits

    limits = Limits(
        memory=stated_size(memory, "--memory"),
        storage=None if storage is None else int(parse_bandwidth(storage)),
        cpus=cpus,
    )
    with extra("bench"), progress(quiet or json) as stages:
        from weightpager_lab.contest.plan import quick as shortened
        from weightpager_lab.contest.run import run_contest

        companions: dict[Name, Path | None] = {
            "unaligned": unaligned,
            "all_blocks": all_blocks,
            "one_mask": one_mask,
        }
        plan = _plan(bundle, companions, limits, tuple(method or ()), repeats, seed, quick=quick)
        contest = run_contest(shortened(plan) if quick else plan, stages)
    if json:
        output.print_json(contest)
    else:
        _print(contest)
    if out is not None:
        write_file("out", out, output.to_json(contest) + "\n")


def _plan(
    path: Path | None,
    companions: Mapping[Name, Path | None],
    limits: Limits,
    methods: tuple[str, ...],
    repeats: int,
    seed: int,
    *,
    quick: bool,
) -> Plan:
    from weightpager.bundle import Bundle
    from weightpager_lab.contest.plan import Plan, Subject, usual_subject

    def say(line: str) -> None:
        output.errors().print(line)

    subject = usual_subject(cache_dir(), say, quick=quick) if path is None else Subject(Bundle.open(path))
    named = {name: Bundle.open(companion) for name, companion in companions.items() if companion is not None}
    return Plan(
        subject.bundle,
        {**subject.companions, **named},
        limits,
        repeats=repeats,
        seed=seed,
        random_weights=subject.random_weights,
        methods=methods,
        command=shlex.join(["weightpager", *sys.argv[1:]]),
    )


def _print(contest: Contest) -> None:
    facts = contest.facts
    weights = "random weights, " if facts.random_weights else ""
    measured = [row for row in contest.rows if row.status == "measured"]
    writing = any(row.found and row.found.written for row in measured)
    output.table(
        f"{facts.name}: {weights}{len(facts.tasks)} tasks at {facts.sparsity:.0%}, overlap {facts.mean_overlap:.2f}; "
        "cold switches, medians",
        (*_COLUMNS, "writes") if writing else _COLUMNS,
        [[*_cells(row), *([_pace(row)] if writing else [])] for row in measured],
    )
    absent: dict[str, list[str]] = {}  # many rows may lack the same
    for row in contest.rows:
        if row.status != "measured":
            absent.setdefault(f"{row.status}: {row.reason}", []).append(row.label)
    for why, labels in absent.items():
        output.say(f"{why}: {'; '.join(labels)}")
    for line in sorted({line for row in contest.rows for line in row.unlimited}):
        output.say(f"note: * no result under the limit: {line}")
    for line in sorted({row.found.cold_note for row in contest.rows if row.found and row.found.cold_note}):
        output.say(f"note: not proved cold: {line}")
    if contest.load > _BUSY:
        output.say(f"note: {contest.load:.1f} other processes were running, which disturbs every figure")
    for key in _SAID:
        if key in contest.figures:
            output.say(f"{key} = {contest.figures[key]}")


_SAID = (
    "switch.speedup_whole_mean",
    "switch.speedup_strict_mean",
    "memory.paged_below_shared_bf16",
    "memory.weights_vs_best_rival",
)
"""Figures that are printed; the others are in the JSON."""


_BUSY = 0.5
"""Processes that ran in the minute before."""

_COLUMNS = (
    "method",
    "memory for",
    "ready",
    "first output",
    "of it, row faults",
    "read",
    "a visit waits",
    "weights",
    "process, peak",
    "forward",
)


def _cells(row: Row) -> list[str]:
    from statistics import fmean, median

    assert row.found is not None
    ready, first, faults, read = (row.values(field) for field in ("ready", "first_output", "row_faults", "bytes"))
    memory = row.found.memory
    return [
        row.title + ("*" if row.unlimited else ""),
        f"{row.room:g} task" + ("" if row.room == 1 else "s"),
        output.milliseconds(median(ready)) if ready else "-",
        output.milliseconds(median(first)) if first else "-",
        output.milliseconds(median(faults)) if faults else "-",
        output.size(fmean(read)) if read else "-",
        "-" if row.mean_waited is None else output.milliseconds(row.mean_waited),
        output.size(memory.weights),
        "-" if row.peak_memory is None else output.size(row.peak_memory),
        output.milliseconds(median(row.found.forwards)),
    ]


def _pace(row: Row) -> str:
    from statistics import median

    assert row.found is not None
    return f"{1 / median(row.found.written):.0f} tokens/s" if row.found.written else "-"
