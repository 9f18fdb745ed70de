"""The process of one method: ``python -m weightpager_lab.contest.worker JOB RESULT``, paths of JSON files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from weightpager.bundle import Bundle
from weightpager_lab.contest.measuring import measure
from weightpager_lab.contest.result import READY, Found, Job
from weightpager_lab.contest.rivals.methods import method
from weightpager_lab.contest.rivals.rival import Pace, Setting


def main(arguments: Sequence[str]) -> None:
    """Do the job in one file, write what was found to the other."""
    job_file, result_file = map(Path, arguments)
    found = do(Job.model_validate_json(job_file.read_bytes()))
    result_file.write_text(found.model_dump_json(), encoding="utf-8")


def do(job: Job) -> Found:
    """Set a method up in this process and measure it; torch is imported only by methods that compute with it."""
    bundle = Bundle.open(job.bundle)
    pace = None if job.pace is None else Pace(job.pace)
    asked = method(job.method)
    tasks = tuple(bundle.tasks)[: min(job.tasks, asked.tasks or job.tasks)]
    rival = asked.make(Setting(bundle, tasks, Path(job.folder), job.budget, job.threads, pace))
    try:
        (Path(job.folder) / READY).touch()
        rival.use_threads(len(os.sched_getaffinity(0)))
        return measure(rival, asked, bundle, tasks, job)
    finally:
        rival.close()


if __name__ == "__main__":
    main(sys.argv[1:])
