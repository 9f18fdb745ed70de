"""A contest from top to bottom: write the rivals' checkpoints, run a process for each method, gather what is found."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.bundle.files.new_directory import scratch
from weightpager.bundle.report.compile_report import has_report, read_report
from weightpager.config import EngineConfig, format_enough, format_room
from weightpager.errors import ConfigError
from weightpager.progress import Progress
from weightpager_lab.companions import COMPANIONS, Name, check, option
from weightpager_lab.contest.figures import budget_for, facts, figures
from weightpager_lab.contest.plan import LEAST_SECONDS, Plan
from weightpager_lab.contest.prompt import scores, write_texts
from weightpager_lab.contest.result import READY, Contest, Found, Job, Row
from weightpager_lab.contest.rivals.methods import METHODS, Method
from weightpager_lab.limits.cgroup import LimitedRun, run_limited
from weightpager_lab.machine_facts import describe

_MOST_ON_DISK = 16 << 30
"""Bytes of checkpoints beside a bundle; more tasks than fit are compared without the dense ones."""


def run_contest(plan: Plan, progress: Progress) -> Contest:
    """Run a contest; checkpoints are written beside the bundle and removed afterwards.

    Raises:
        ConfigError: a method that nobody knows, a bundle of a single task, a companion of another bundle, or no place
            to write beside it.
        BundleError, StoreError: the bundle is damaged.
    """
    start, load = time.perf_counter(), os.getloadavg()[0]
    if len(plan.bundle.tasks) < 2:
        raise ConfigError(f"{plan.bundle.path}: expected at least two tasks to switch between, found one")
    check(plan.bundle, plan.companions)
    asked = _asked(plan)
    report = read_report(plan.bundle) if has_report(plan.bundle) else None
    rows = _all_rows(plan, asked, progress)
    found, found_by = scores(plan.bundle, report, again=not plan.quick, progress=progress)
    contest = Contest(
        facts=facts(plan.bundle, random_weights=plan.random_weights),
        limits=plan.limits,
        rows=rows,
        scores=found,
        scores_from=found_by,
        controls=report.controls if report else [],
        companion_scores={
            name: read_report(bundle).tasks for name, bundle in plan.companions.items() if has_report(bundle)
        },
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


def _all_rows(plan: Plan, asked: Sequence[Method], progress: Progress) -> list[Row]:
    beside = plan.bundle.path.absolute().parent
    try:
        with scratch(beside, ".weightpager-bench-") as folder:
            return list(_rows(plan, asked, folder, progress))
    except OSError as error:
        raise ConfigError(
            f"bundle: expected to write checkpoints into {beside}, beside it: {error.strerror or error}"
        ) from error


def _asked(plan: Plan) -> list[Method]:
    known = {method.name: method for method in METHODS if method.suits(plan.bundle)}
    if unknown := next((name for name in plan.methods if name not in known), None):
        raise ConfigError(f"method: expected one of {', '.join(known)}, got {unknown!r}")
    return [method for name, method in known.items() if not plan.methods or name in plan.methods]


def _rows(plan: Plan, asked: Sequence[Method], folder: Path, progress: Progress) -> Iterator[Row]:
    absent = _write_assets(plan, asked, folder, progress)
    write_texts(plan.bundle, plan.tasks, folder)
    jobs = [(method, room) for method in asked for room in plan.rooms_of(method)]
    for done, (method, room) in enumerate(jobs):  # ours first: a quick contest may end before the last ones
        progress("measure", done, len(jobs))
        bundle = plan.bundle if method.companion is None else plan.companions.get(method.companion)
        budget = budget_for(bundle or plan.bundle, room)
        row = Row(method=method.name, label=method.label, room=room, budget=budget, status="skipped")
        reason = method.skipped or next((absent[asset] for asset in method.assets if asset in absent), "")
        if method.companion is not None and bundle is None:
            reason = _no_companion(method.companion)
        if plan.quick and not method.quick:
            reason = reason or "not part of --quick"
        if plan.seconds_left <= LEAST_SECONDS:
            reason = reason or "no time was left for it within --quick"
        if reason:
            yield row.model_copy(update={"reason": reason})
        else:
            assert bundle is not None
            yield _measured(plan, row, method, bundle, folder)
    progress("measure", len(jobs), len(jobs))


def _measured(plan: Plan, row: Row, method: Method, bundle: Bundle, folder: Path) -> Row:
    """A row with what its method's process found, or how that ended.

    Args:
        plan: of the contest.
        row: of the method under one budget.
        method: to measure.
        bundle: that it runs.
        folder: where the checkpoints are.
    """
    limits = plan.limits
    pace = None if limits.storage is None or method.reads_by_library else float(limits.storage)
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
        tasks=len(plan.tasks),
        seed=plan.seed,
    )
    job_file, result_file = folder / "job.json", folder / "result.json"
    job_file.write_text(job.model_dump_json(), encoding="utf-8")
    for file in (result_file, ready := folder / READY):
        file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "weightpager_lab.contest.worker", str(job_file), str(result_file)]
    try:
        run = run_limited(
            command,
            memory=limits.memory,
            storage_bytes_per_s=limits.storage if pace is None else None,
            cpus=limits.cpus,
            storage_path=bundle.path,
            timeout=plan.seconds_left,
        )
    except OSError as error:
        reason = f"no process can be started: {error.strerror or error}"
        return row.model_copy(update={"status": "failed", "reason": reason})
    changes = {
        "unlimited": list(run.missing),
        "peak_memory": run.peak_memory,
        "seconds": run.seconds,
    }
    if run.exit_code != 0 or not result_file.is_file():
        reason = _failure(run, plan, set_up=ready.exists())
        return row.model_copy(update={**changes, "status": "failed", "reason": reason, "set_up": ready.exists()})
    found = Found.model_validate_json(result_file.read_bytes())
    return row.model_copy(update={**changes, "status": "measured", "found": found})


def _failure(run: LimitedRun, plan: Plan, *, set_up: bool) -> str:
    if run.oom_kills and plan.limits.memory is not None:
        when = "" if set_up else " while it was set up"
        return f"killed for want of memory{when}: it needs more than {format_room(plan.limits.memory)}"
    if run.timed_out:
        return f"killed after {run.seconds:.0f} s"
    lines = [line for line in run.stderr.splitlines() if line.strip()]
    return f"exit code {run.exit_code}: {lines[-1] if lines else 'nothing was said'}"[:400]


def _no_companion(name: Name) -> str:
    how = COMPANIONS[name]
    return f"no bundle {how.what}; name one that was compiled with {how.stated} by {option(name)}"


def _write_assets(plan: Plan, asked: Sequence[Method], folder: Path, progress: Progress) -> dict[str, str]:
    """Write what the methods read; by asset, why it isn't there."""
    needed = {
        asset for method in asked if not method.skipped and (method.quick or not plan.quick) for asset in method.assets
    }
    absent: dict[str, str] = {}
    if not needed:  # so that a device without torch can measure our own methods
        return absent
    from weightpager_lab.contest.rivals import assets
    from weightpager_lab.contest.rivals.backbone import FewBits, write_quantised

    size = assets.dense_bytes(plan.bundle) * (1 if plan.quick else len(plan.tasks))
    if "dense" in needed and (size > _MOST_ON_DISK or not assets.enough_room(folder, size)):
        absent["dense"] = f"dense checkpoints of all tasks would take {format_enough(size)} of disk"
    if "sparse" in needed:
        assets.write_sparse(plan.bundle, plan.tasks, folder, progress)
    few_bits: tuple[FewBits, ...] = ("int8", "int4")
    for dtype in few_bits:
        if dtype in needed:
            write_quantised(plan.bundle, folder, dtype, progress)
    if "dense" in needed and "dense" not in absent:
        assets.write_dense(plan.bundle, plan.tasks, folder, progress, distinct=not plan.quick)
    return absent
