"""The process of a method: started under the plan's limits, and what becomes of it."""

from __future__ import annotations

import sys
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager.config import EngineConfig, format_room
from weightpager_lab.contest.plan import Plan
from weightpager_lab.contest.result import READY, Found, Job, Row
from weightpager_lab.contest.rivals.methods import Method
from weightpager_lab.limits.cgroup import LimitedRun, run_limited


def measured(plan: Plan, row: Row, method: Method, bundle: Bundle, folder: Path) -> Row:
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
