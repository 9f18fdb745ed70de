"""The queue before the worker, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from weightpager.answers.work import Classify
from weightpager.bundle import TaskEntry
from weightpager.server.scheduling import job as job_module
from weightpager.server.scheduling.batching import Waiting
from weightpager.server.scheduling.job import Job
from weightpager.server.scheduling.scheduler import BatchPlan, JobQueue, Taken

JOBS = 12


def full_queue() -> tuple[JobQueue, list[Job]]:
    entry = cast("TaskEntry", SimpleNamespace(name="animal"))
    jobs = [Job(entry, Classify((2, 3)), index, float(index), 1e9, lambda _: None) for index in range(JOBS)]
    queue = JobQueue(JOBS)
    queue.reserve(JOBS)
    queue.put(jobs)
    return queue, jobs


def taken(queue: JobQueue, *places: int) -> list[int]:
    """The numbers of the jobs that are taken."""

    def choose(jobs: Sequence[Job]) -> BatchPlan:
        assert [job.waiting.arrived for job in jobs] == sorted(job.waiting.arrived for job in jobs)
        return BatchPlan(places)

    found = queue.take(choose)
    assert isinstance(found, Taken)
    return [job.index for job in found.jobs]


def test_what_stays_keeps_its_order_and_what_nobody_waits_for_goes() -> None:
    queue, jobs = full_queue()
    assert taken(queue, 0, 3, 4, 11) == [0, 3, 4, 11]
    jobs[1].cancel()
    jobs[8].cancel()
    assert (queue.taken(), queue.waiting()) == (JOBS - 6, {"animal": JOBS - 6})
    assert taken(queue, 1, 5) == [5, 10]
    assert taken(queue, 0, 1, 2, 3) == [2, 6, 7, 9]
    assert queue.taken() == 0


def test_a_job_is_described_to_the_scheduler_once_however_long_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    described: list[Any] = []

    def describe(*values: Any) -> Waiting:
        described.append(values)
        return Waiting(*values)

    monkeypatch.setattr(job_module, "Waiting", describe)
    queue, _ = full_queue()
    for number in range(JOBS):
        assert taken(queue, 0) == [number]
    assert len(described) == JOBS
