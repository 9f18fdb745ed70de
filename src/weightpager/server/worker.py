"""The one thread that switches tasks and runs them: carries out what the scheduler says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import nn

from weightpager.bundle import TaskEntry
from weightpager.engine import Engine
from weightpager.engine.architecture import takes_images
from weightpager.errors import BusyError, RequestTimeoutError, ServerClosedError, WeightpagerError
from weightpager.server.encoding import encode
from weightpager.server.generation import generate
from weightpager.server.job import Done, Failed, Job
from weightpager.server.job_queue import JobQueue
from weightpager.server.metrics import Metrics
from weightpager.server.scheduler import Plan, Policy, Turn, next_batch
from weightpager.server.timeline import Timeline
from weightpager.server.work import Generate

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Worker:
    """Runs jobs of a queue on an engine, batch by batch, in a thread of its own.

    Attributes:
        policy: what is run next, and together; replaced in the worker's own thread.
    """

    def __init__(self, engine: Engine, queue: JobQueue, policy: Policy, metrics: Metrics, timeline: Timeline) -> None:
        """Nothing runs until `start`."""
        self._engine = engine
        self._queue = queue
        self.policy = policy
        self._metrics = metrics
        self._timeline = timeline
        self._tokenizer: Any = None if takes_images(engine.bundle) else engine.tokenizer()  # this thread's own
        self._turn = Turn()
        self._running: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="weightpager-worker", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        """Jobs in the batch that is being run."""
        return len(self._running)

    def start(self) -> None:
        """Take jobs from now on."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Refuse what waits, have the running batch end soon, and return when it has, or after the timeout."""
        for job in self._queue.close():
            job.listener(Failed(job.index, ServerClosedError("the server is shutting down; ask again when it is back")))
        for job in list(self._running):
            job.cancel()
        self._thread.join(timeout)

    def between(self, act: Callable[[], _Result]) -> Future[_Result]:
        """Have something done between two batches, while no task is in use.

        Raises:
            ServerClosedError: the worker takes nothing any more.
        """
        future: Future[_Result] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                self._engine.deactivate()
                future.set_result(act())
            except Exception as error:  # noqa: BLE001 - it belongs to who asked
                future.set_exception(error)

        self._queue.command(command)
        return future

    def enter(self, task: str) -> nn.Module:
        """Switch to a task; only in the worker's own thread, so inside `between`. Errors are those of the engine."""
        before = self._engine.monitor.current
        module = self._engine.activate(task)
        switch = self._engine.last_switch
        if task != before and switch is not None:
            self._timeline.add(switch)
        return module

    def _run(self) -> None:
        while (taken := self._queue.take(self._choose)) is not None:
            if callable(taken):
                taken()
            else:
                self._serve(taken)

    def _choose(self, jobs: Sequence[Job]) -> Plan:
        now = time.monotonic()
        waiting = [job.waiting for job in jobs]
        plan = next_batch(waiting, self._turn, now, self.policy, self._engine.resident_tasks())
        if plan.places and jobs[plan.places[0]].task == self._turn.task and self._turn.is_over(now, self.policy):
            self._turn = self._turn.renewed(now)
        return plan

    def _serve(self, jobs: list[Job]) -> None:
        start = time.monotonic()
        task = jobs[0].task
        jobs = [job for job in jobs if not _expired(job, start) and not self._outdated(job)]
        self._running = jobs
        try:
            if jobs:
                for job in jobs:
                    job.began = start
                gap = start - max(jobs[0].arrived, self._turn.served_at.get(task, 0.0))
                self._metrics.began(task, [start - job.arrived for job in jobs], gap)
                self._run_batch(self.enter(task), jobs)
        except WeightpagerError as error:
            _fail(jobs, error)
        except Exception as error:  # noqa: BLE001 - who asked is told, and the next batch may go well
            _log.exception("a batch of task %r failed", task)
            _fail(jobs, error)
        finally:
            self._running = []
            self._turn = self._turn.after(task, len(jobs), start, time.monotonic())

    def _outdated(self, job: Job) -> bool:
        """Tell the listener of a job whose task reads other texts, or has other classes, since a reload."""
        now = self._engine.bundle.tasks.get(job.task)
        if now is None or _read_by(now) == _read_by(job.entry):
            return False
        job.listener(Failed(job.index, BusyError(f"task {job.task!r} was compiled anew meanwhile; ask again")))
        return True

    def _run_batch(self, module: nn.Module, jobs: Sequence[Job]) -> None:
        start = time.monotonic()
        with torch.inference_mode():
            tokens = self._outcomes(module, jobs)
        self._metrics.ran(jobs[0].task, len(jobs), tokens, time.monotonic() - start)

    def _outcomes(self, module: nn.Module, jobs: Sequence[Job]) -> int:
        """Tell every listener; how many tokens were generated."""
        works = [job.work for job in jobs]
        if isinstance(works[0], Generate):
            return generate(module, self._tokenizer, jobs)
        for job, outcome in zip(jobs, encode(module, self._tokenizer, works), strict=True):
            job.listener(Done(job.index, outcome))
        return 0


def _read_by(task: TaskEntry) -> tuple[object, ...]:
    """What a request was read by, and its answer will be written by."""
    return (task.kind, task.classes, task.max_length)


def _expired(job: Job, now: float) -> bool:
    """Tell the listener of a job whose time is over before it began."""
    if now <= job.deadline:
        return job.cancelled
    job.listener(Failed(job.index, RequestTimeoutError("the request waited longer than the server gives it")))
    return True


def _fail(jobs: Sequence[Job], error: Exception) -> None:
    for job in jobs:
        job.listener(Failed(job.index, error))
