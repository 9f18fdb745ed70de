"""Jobs that run together, from their first step to their last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from weightpager.answers.begin import begin
from weightpager.answers.model import TaskModel
from weightpager.answers.query import Run, compiled_anew
from weightpager.server.scheduling.batching import Started, held
from weightpager.server.scheduling.job import Job
from weightpager.server.scheduling.policy import Policy


class Batch:
    """Jobs that run together; used by the worker's thread alone.

    Attributes:
        started: the batch as the scheduler sees it.
        texts: number of texts that began together.
    """

    def __init__(self, jobs: Sequence[Job], now: float, policy: Policy) -> None:
        """Begin a batch.

        Args:
            jobs: of one task and kind, in the order of arrival.
            now: by `time.monotonic`.
            policy: by which they were chosen.
        """
        for job in jobs:
            job.began = now
        waiting = [job.waiting for job in jobs]
        heavy = any(request.heavy for request in waiting)
        self.started = Started(jobs[0].task, jobs[0].arrived, now, held(waiting, policy), heavy)
        self.texts = len(jobs)
        self._jobs = jobs
        self._model: TaskModel | None = None
        self._run: Run | None = None

    @property
    def jobs(self) -> Sequence[Job]:
        """The jobs that haven't ended."""
        return [job for job in self._jobs if not job.over]

    def step(self, model: TaskModel, reader: Any, until: float) -> int:
        """Compute a step, as `Run.step`.

        Args:
            model: of the task, which is active.
            reader: of inputs; the calling thread's own.
            until: by `time.monotonic`.

        Raises:
            BusyError: the task isn't what it was when the batch began.
        """
        if self._run is None:
            self._model, self._run = model, begin(self._jobs[0].entry.kind, model, reader, self._jobs)
        if model is not self._model:
            raise compiled_anew(self.started.task)
        return self._run.step(until)

    def fail(self, error: Exception) -> None:
        """End the batch: every job that hasn't ended fails with this error."""
        for job in self.jobs:
            job.fail(error)

    def paused(self, now: float) -> None:
        """Note that a step has ended: from now on the batch waits for its next one."""
        self.started = replace(self.started, ready=now)
