"""``weightpager demo``: see it work on a real model."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from weightpager.cli import output
from weightpager.cli.options import Json, Quiet, explicit_option, extra
from weightpager.cli.output import check_writable, write_file
from weightpager.cli.progress import progress
from weightpager.config import cache_dir
from weightpager.machine.packages import is_installed

if TYPE_CHECKING:
    from weightpager_lab.demo.result import DemoResult


def demo(
    out: Annotated[Path, explicit_option("--out", "-o", help="Page to write.")] = Path("weightpager-demo.html"),
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compile a real model for six real tasks, switch among them under a budget, and show what was gained.

    Fetches about 120 MB the first time; a second run takes its data and bundles from the cache.
    Needs `weightpager[demo]`.

    Example: `weightpager demo --out demo.html`
    """
    check_writable("out", out)
    with extra("demo"):
        from weightpager_lab.demo import run_demo
        from weightpager_lab.demo.page import render
    try:
        with progress(quiet or json) as stages:
            result = run_demo(cache_dir(), stages)
    except KeyboardInterrupt as error:
        output.errors().print(str(error) or f"interrupted; what was downloaded and compiled stays in {cache_dir()}")
        raise
    if json:
        output.print_json(result.document())
    else:
        _print(result)
    write_file("out", out, render(result))
    if not json:
        output.say(f"\nThe page with the plots: {out.absolute()}")
        output.next_step(_serve(result) if is_installed("fastapi") else _run(result))


def _print(result: DemoResult) -> None:
    _print_tasks(result)
    _print_ways(result)
    output.say(result.verdict)
    output.say(result.budgets)
    output.explain("overlap", "arena")
    if not result.cold:
        output.say(f"note: not proved cold: {result.cold_note}")
    for task, reason in result.missing.items():
        output.say(f"note: {task} was left out: {reason}")


def _print_tasks(result: DemoResult) -> None:
    rows = [
        [task.name, task.metric, *(f"{getattr(task, field):.3f}" for field in _METRICS), *_switching(result, task.name)]
        for task in result.tasks
    ]
    speed = [_speedup(result, field) for field in ("whole_sparse_ms", "dense_ms")]
    rows.append(["mean", "", *(f"{result.mean(field):.3f}" for field in _METRICS), "", "", *speed])
    output.table(
        f"{len(result.tasks)} tasks at {result.sparsity:.0%} sparsity; switches to each task"
        f"{', cold' if result.cold else ''}, mean over where from",
        ["task", "metric", *_SCORES, *_SWITCHES],
        rows,
    )


def _print_ways(result: DemoResult) -> None:
    output.table(
        f"Ways to serve them; mean overlap {result.mean_overlap:.3f} (unaligned {result.mean_overlap_unaligned:.3f})",
        ["in memory", "weights", "of which paged", "mean metric", "a switch reads", "ms", "row faults, ms a text"],
        [
            [
                row.name,
                output.size(row.bytes),
                output.size(row.paged_bytes),
                f"{row.mean_metric:.3f}",
                output.size(row.mean_bytes_per_switch) if row.mean_bytes_per_switch else "nothing",
                "-" if row.ms_per_switch is None else f"{row.ms_per_switch:.2g}",
                "-" if (faults := row.row_faults(result.figures)) is None else f"{faults:.2g}",
            ]
            for row in result.memory
        ],
    )


def _serve(result: DemoResult) -> str:
    return f"{_program()} serve {_bundle(result)}"


def _run(result: DemoResult) -> str:
    return f"{_program()} run {_bundle(result)} --task {result.tasks[0].name} 'You won a prize'"


def _bundle(result: DemoResult) -> str:
    budget = output.enough(result.budget).replace(" ", "")  # one word of the shell
    return f"{shlex.quote(result.bundle)} --budget {budget}"


def _program() -> str:
    """What this shell calls weightpager by: its path, where it lies in an environment that isn't active."""
    return "weightpager" if shutil.which("weightpager") else shlex.quote(sys.argv[0])


_SCORES = ["dense", "ours", "shared mask", "int8", "int4"]
_SWITCHES = ["loads", "ms", "own sparse, ms", "dense, ms"]
_METRICS = ("dense", "sparse", "shared_mask", "int8", "int4")


def _switching(result: DemoResult, task: str) -> list[str]:
    switches = [switch for switch in result.switches if switch.to_task == task]
    count = len(switches)
    return [
        output.size(sum(switch.bytes for switch in switches) / count),
        f"{sum(switch.ms for switch in switches) / count:.1f}",
        f"{switches[0].whole_sparse_ms:.1f}",
        f"{switches[0].dense_ms:.1f}",
    ]


def _speedup(result: DemoResult, field: str) -> str:
    least, most = result.speedup_range(field)
    return f"{result.speedup(field):.1f} × ({least:.1f} to {most:.1f})"
