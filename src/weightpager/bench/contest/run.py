"""A contest from top to bottom: write the rivals' checkpoints, run a process for each method, gather what is found."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightpager.bench.cgroup import LimitedRun, run_limited
from weightpager.bench.contest import assets
from weightpager.bench.contest.facts import budget_for, facts
from weightpager.bench.contest.figures import figures
from weightpager.bench.contest.found import Found, Job
from weightpager.bench.contest.methods import METHODS, Method
from weightpager.bench.contest.result import Contest, Limits, Row
from weightpager.bench.contest.scores import scores
from weightpager.bench.machine import describe
from weightpager.bundle import Bundle
from weightpager.bundle.report import has_report, read_report
from weightpager.config import EngineConfig, format_size
from weightpager.errors import ConfigError

Progress = Callable[[str, int, int], None]

_MOST_ON_DISK = 12 << 30
"""Bytes of checkpoints beside a bundle; more tasks than fit are compared without the dense ones."""

_LARGE = 256 << 20
_QUICK_TASKS = 3

_TIMEOUT = 900.0
_QUICK_SECONDS = 170.0
_LEAST_SECONDS = 15.0
"""That a method takes at least."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bundle: the tasks.
        unaligned: the same without alignment; None if there is none.
        limits: of every process.
        quick: shorter, and accuracy as the compile measured it.
        repeats: of every ordered pair.
        seconds: for the pairs of one method.
        visits: of the trace.
        rooms: for methods that can use more memory, how many tasks the further budgets have room for.
        seed: of orders and inputs.
        random_weights: whether the bundle stands for speed and memory only.
        methods: names of those to run; all if empty.
        command: that was typed.
        end: by `time.monotonic`, when no further method is begun and a running one is killed; None for never.
    """

    bundle: Bundle
    unaligned: Bundle | None = None
    limits: Limits = field(default_factory=lambda: Limits(memory=None, storage=None, cpus=None))
    quick: bool = False
    repeats: int = 5
    seconds: float = 60.0
    visits: int = 40
    rooms: tuple[float, ...] = (1.5, 2.0)
    seed: int = 0
    random_weights: bool = False
    methods: tuple[str, ...] = ()
    command: str = ""
    end: float | None = None


def quick(plan: Plan) -> Plan:
    """The same for less than three minutes from now on: what doesn't come in time is left out, and says so."""
    return replace(plan, quick=True, repeats=2, seconds=4.0, visits=12, rooms=(), end=time.monotonic() + _QUICK_SECONDS)


def run_contest(plan: Plan, progress: Progress) -> Contest:
    """Run a contest; checkpoints are written beside the bundle and removed afterwards.

    Raises:
        ConfigError: a method that nobody knows, or a bundle of a single task.
        OSError: checkpoints can't be written beside the bundle.
        BundleError, StoreError: the bundle is damaged.
    """
    start, load = time.perf_counter(), os.getloadavg()[0]
    if len(plan.bundle.tasks) < 2:
        raise ConfigError(f"{plan.bundle.path}: expected at least two tasks to switch between, found one")
    asked = _asked(plan)
    report = read_report(plan.bundle) if has_report(plan.bundle) else None
    with tempfile.TemporaryDirectory(prefix=".weightpager-bench-", dir=plan.bundle.path.parent) as name:
        rows = list(_rows(plan, asked, Path(name), progress))
    found, found_by = scores(plan.bundle, report, again=not plan.quick, progress=progress)
    contest = Contest(
        facts=facts(plan.bundle, random_weights=plan.random_weights),
        limits=plan.limits,
        rows=rows,
        scores=found,
        scores_from=found_by,
        controls=report.controls if report else [],
        compile_seconds=report.seconds if report else {},
        alignment_gap=report.duality_gap if report else None,
        repeats=plan.repeats,
        seed=plan.seed,
        quick=plan.quick,
        command=plan.command,
        machine=describe(),
        load=load,
        seconds=time.perf_counter() - start,
        figures={},
    )
    return contest.model_copy(update={"figures": figures(contest)})


def _asked(plan: Plan) -> list[Method]:
    known = {method.name: method for method in METHODS}
    if unknown := next((name for name in plan.methods if name not in known), None):
        raise ConfigError(f"method: expected one of {', '.join(known)}, got {unknown!r}")
    return [method for method in METHODS if not plan.methods or method.name in plan.methods]


def _rows(plan: Plan, asked: Sequence[Method], folder: Path, progress: Progress) -> Iterator[Row]:
    absent = _write_assets(plan, asked, folder, progress)
    pace = _pace(plan)
    jobs = [(method, room) for method in asked for room in _rooms(plan, method)]
    for done, (method, room) in enumerate(jobs):  # ours first: a quick contest may end before the last ones
        progress("measure", done, len(jobs))
        bundle = plan.unaligned if method.unaligned else plan.bundle
        budget = budget_for(bundle or plan.bundle, room)
        row = Row(method=method.name, label=method.label, room=room, budget=budget, status="skipped")
        reason = method.skipped or next((absent[asset] for asset in method.assets if asset in absent), "")
        if bundle is None:
            reason = "no bundle without alignment; name one that was compiled with 'alignment: 0' by --unaligned"
        if plan.quick and not method.quick:
            reason = reason or "not part of --quick"
        if _seconds_left(plan) <= _LEAST_SECONDS:
            reason = reason or "no time was left for it within --quick"
        if reason:
            yield row.model_copy(update={"reason": reason})
        else:
            assert bundle is not None
            yield _measured(plan, row, bundle, folder, pace)
    progress("measure", len(jobs), len(jobs))


def _rooms(plan: Plan, method: Method) -> Iterator[float]:
    if method.rooms != "more" or not plan.rooms:
        yield 1.0
    if method.rooms != "one":
        yield from plan.rooms


def _write_assets(plan: Plan, asked: Sequence[Method], folder: Path, progress: Progress) -> dict[str, str]:
    """Write what the methods read; by asset, why it isn't there."""
    needed = {
        asset for method in asked if not method.skipped and (method.quick or not plan.quick) for asset in method.assets
    }
    absent: dict[str, str] = {}
    tasks = list(plan.bundle.tasks)[: _tasks(plan)]
    size = assets.dense_bytes(plan.bundle) * (1 if plan.quick else len(tasks))
    if "dense" in needed and (size > _MOST_ON_DISK or not assets.enough_room(folder, size)):
        absent["dense"] = f"dense checkpoints of all tasks would take {format_size(size)} of disk"
    if "sparse" in needed:
        assets.write_sparse(plan.bundle, tasks, folder, progress)
    if "int8" in needed:
        assets.write_int8(plan.bundle, folder, progress)
    if "dense" in needed and "dense" not in absent:
        assets.write_dense(plan.bundle, tasks, folder, progress, distinct=not plan.quick)
    return absent


def _pace(plan: Plan) -> float | None:
    """What processes must slow their own reads down to: None where the kernel does it."""
    if plan.limits.storage is None:
        return None
    trial = _limited([sys.executable, "-c", ""], plan)
    return None if trial.storage.held else float(plan.limits.storage)


def _measured(plan: Plan, row: Row, bundle: Bundle, folder: Path, pace: float | None) -> Row:
    job = Job(
        method=row.method,
        bundle=str(bundle.path),
        folder=str(folder),
        budget=row.budget,
        threads=EngineConfig().io_threads,
        pace=pace,
        seconds=plan.seconds,
        repeats=plan.repeats if row.room == 1 else 0,
        visits=plan.visits,
        tasks=_tasks(plan),
        seed=plan.seed,
    )
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    result_file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "weightpager.bench.contest.worker", str(job_file), str(result_file)]
    run = _limited(command, plan)
    changes = {
        "unlimited": _unlimited(run, row, pace),
        "peak_memory": run.peak_memory,
        "seconds": run.seconds,
    }
    if run.exit_code != 0 or not result_file.is_file():
        return row.model_copy(update={**changes, "status": "failed", "reason": _failure(run, plan)})
    found = Found.model_validate_json(result_file.read_bytes())
    return row.model_copy(update={**changes, "status": "measured", "found": found})


def _tasks(plan: Plan) -> int:
    """How many tasks are visited: a quick look at a large model doesn't build all of its modules for every method."""
    large = plan.bundle.dense_bytes > _LARGE
    return min(len(plan.bundle.tasks), _QUICK_TASKS) if plan.quick and large else len(plan.bundle.tasks)


def _limited(command: Sequence[str], plan: Plan) -> LimitedRun:
    return run_limited(
        command,
        memory=plan.limits.memory,
        storage_bytes_per_s=plan.limits.storage,
        cpus=plan.limits.cpus,
        storage_path=plan.bundle.path,
        timeout=_seconds_left(plan),
    )


_CANNOT_PACE = frozenset({"sparse_copied", "dense_copied", "dense_mapped", "offload"})
"""They read through a library, at the disk's own speed."""


def _seconds_left(plan: Plan) -> float:
    return _TIMEOUT if plan.end is None else max(_LEAST_SECONDS, plan.end - time.monotonic())


def _unlimited(run: LimitedRun, row: Row, pace: float | None) -> list[str]:
    missing = list(run.missing)
    if pace is not None and row.method not in _CANNOT_PACE:
        missing = [line for line in missing if not line.startswith("storage")]
        missing.append("storage: reads slowed down by the process itself")
    return missing


def _failure(run: LimitedRun, plan: Plan) -> str:
    if run.oom_kills and plan.limits.memory is not None:
        return f"killed for want of memory: it needs more than {format_size(plan.limits.memory)}"
    if run.timed_out:
        return f"killed after {run.seconds:.0f} s"
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return f"exit code {run.exit_code}: {lines[-1] if lines else 'nothing was said'}"[:400]
