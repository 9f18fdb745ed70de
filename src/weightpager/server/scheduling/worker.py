"""The one thread that switches tasks and runs them, as the scheduler says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from weightpager.answers.encoding import begin
from weightpager.answers.kept import Kept
from weightpager.answers.model import TaskModel
from weightpager.answers.query import Run, compiled_anew
from weightpager.bundle import TaskEntry
from weightpager.engine import Engine, Models
from weightpager.errors import UnknownTaskError, WeightpagerError
from weightpager.machine.panics import panics_as_errors
from weightpager.server.metrics import Metrics
from weightpager.server.scheduling.batching import Started, held
from weightpager.server.scheduling.job import Job, shutting_down
from weightpager.server.scheduling.scheduler import BatchPlan, JobQueue, Taken, Turn, next_batch, task_of
from weightpager.server.scheduling.served_bundle import ServedBundle
from weightpager.server.scheduling.settings import Policy


class RunningBatch:
    """Jobs that run together; used by the worker's thread alone.

    Attributes:
        texts: number of texts that began together.
        ended: is to be called when it has ended.
    """

    def __init__(self, jobs: Sequence[Job], now: float, ended: Callable[[], None] = lambda: None) -> None:
        """Begin a batch of jobs of one task and kind, in the order of arrival, at ``now``; ``ended`` is called once."""
        for job in jobs:
            job.began = now
        waiting = [job.waiting for job in jobs]
        heavy = any(request.heavy for request in waiting)
        bundle = jobs[0].limits.bundle
        self.started = Started(jobs[0].task, jobs[0].arrived, now, held(waiting), heavy, bundle)
        self.texts = len(jobs)
        self.ended = ended
        self._jobs = jobs
        self._model: TaskModel | None = None
        self._run: Run | None = None

    @property
    def jobs(self) -> Sequence[Job]:
        return [job for job in self._jobs if not job.over]

    def step(self, model: TaskModel, reader: Any, until: float, kept: Kept) -> int:
        """Compute a step, as `Run.step`. Arguments are those of `begin`.

        Raises:
            BusyError: the task isn't what it was when the batch began.
        """
        if self._run is None:
            self._model, self._run = model, begin(self._jobs[0].entry.kind, model, reader, self._jobs, kept)
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


class Served(Protocol):
    """What the worker runs."""

    runs: Engine | Models
    bundles: dict[str, ServedBundle]

    @property
    def current(self) -> str | None: ...

    def bundle_of(self, name: str) -> tuple[ServedBundle, TaskEntry]: ...

    def fit_together(self, tasks: Iterable[str]) -> bool: ...


_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


class Worker:
    """Runs jobs of a queue, step by step, in a thread of its own."""

    def __init__(self, served: Served, queue: JobQueue, policy: Policy, metrics: Metrics) -> None:
        self._served = served
        self._queue = queue
        self._policy = policy
        self._metrics = metrics
        self._turn = Turn()
        self._batches: list[RunningBatch] = []  # under way
        self._running: Sequence[Job] = ()  # all of their jobs, for other threads to read
        self._active: str | None = None
        self._since: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="weightpager-worker", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def busy(self) -> float:
        """Seconds since it last looked at the queue; 0 while it has nothing to do."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """Refuse the jobs that wait, and end those under way after their present forward.

        Args:
            timeout: seconds to wait for them; None waits until they have ended.
        """
        self._stopping = True
        for job in self._queue.close():
            job.fail(shutting_down())
        for job in self._running:
            job.cancel()
        self._thread.join(timeout)

    def between(self, act: Callable[[], _Result]) -> Future[_Result]:
        """Have something done in the worker's thread between two steps, while no task is in use.

        Raises:
            ServerClosedError: the worker takes nothing any more.
        """

        def alone() -> _Result:
            self._active = None
            self._served.runs.deactivate()
            return act()

        return self.soon(alone)

    def soon(self, act: Callable[[], _Result]) -> Future[_Result]:
        """Have something done in the worker's thread between two steps. Errors are those of `between`."""
        future: Future[_Result] = Future()

        def command() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(act())
            except Exception as error:  # noqa: BLE001 - the caller gets it from the future
                future.set_exception(error)

        self._queue.command(command)
        return future

    def enter(self, task: str) -> TaskModel:
        """Switch to a task; only in the worker's own thread (`between`). Errors are those of the engine."""
        bundle, _ = self._served.bundle_of(task)
        before, self._active = self._served.current, None
        self._served.runs.activate(bundle.whole(task))
        bundle.follow()
        self._active = task
        switch = bundle.engine.last_switch
        if task != before and switch is not None:
            self._metrics.switched(replace(switch, from_task=before, to_task=task))
        return bundle.model(task)

    def _run(self) -> None:
        while (taken := self._queue.take(self._choose)) is not None:
            self._since = time.monotonic()
            if isinstance(taken, Taken):
                self._serve(taken)
            else:
                taken()
            self._since = None

    def _choose(self, jobs: Sequence[Job]) -> BatchPlan:
        now = time.monotonic()
        started = [batch.started for batch in self._batches]
        waiting = [job.waiting for job in jobs]
        resident = [name for bundle in self._served.bundles.values() for name in bundle.resident_tasks]
        barred = self._barred({request.task for request in waiting}, {batch.task for batch in started})
        plan = next_batch(waiting, self._turn, now, self._policy, resident, started, barred)
        task = task_of(plan, waiting, started)
        if task is not None:
            self._turn = self._turn.before(task, now, self._policy)
        return plan

    def _barred(self, waiting: set[str], started: set[str]) -> list[str]:
        """Tasks for whose bundle one would have to sleep of which a batch is under way."""
        if not started or len(self._served.bundles) == 1:
            return []
        return [task for task in waiting if not self._served.fit_together({task, *started})]

    def _serve(self, taken: Taken) -> None:
        """Take the next step of a batch under way, or the first step of jobs that begin."""
        start = time.monotonic()
        batch = self._begin(taken.jobs, start) if taken.run is None else self._batches[taken.run]
        if batch is None:
            return
        begins = taken.run is None
        if self._stopping:
            for job in batch.jobs:
                job.cancel()
        computed = self._step(batch, start, begins=begins)
        end = time.monotonic()
        self._turn = self._turn.after(batch.started.task, batch.texts if begins else 0, computed, end)
        batch.paused(end)
        if not batch.jobs:
            self._batches.remove(batch)
            batch.ended()
        self._tell_running()

    def _begin(self, jobs: Sequence[Job], now: float) -> RunningBatch | None:
        for job in jobs:
            if not job.expire(now):
                self._fail_if_outdated(job)
        left = [job for job in jobs if not job.over]
        if not left:
            return None
        try:
            ended = self._served.bundle_of(left[0].task)[0].hold()
        except UnknownTaskError as error:  # its bundle has left meanwhile
            for job in left:
                job.fail(error)
            return None
        batch = RunningBatch(left, now, ended)
        self._batches.append(batch)
        self._tell_running()
        return batch

    def _step(self, batch: RunningBatch, start: float, *, begins: bool) -> float:
        """Take a step, the batch's first or another; when it began to compute, since a turn begins after its switch."""
        task = batch.started.task
        ready = batch.started.arrived if begins else batch.started.ready
        waits = [start - job.arrived for job in batch.jobs] if begins else []
        self._metrics.began(task, waits, start - max(ready, self._turn.served_at.get(task, 0.0)))
        entered = start
        try:
            with panics_as_errors():
                bundle, _ = self._served.bundle_of(task)
                model = bundle.model(task) if task == self._active and not begins else self.enter(task)
                entered = time.monotonic()
                until = entered + self._policy.step
                tokens = batch.step(model, bundle.worker_reader, until, bundle.kept(task))
            self._metrics.ran(task, batch.texts if begins else 0, tokens, time.monotonic() - entered)
        except WeightpagerError as error:
            batch.fail(error)
        except Exception as error:  # noqa: BLE001 - its clients are told, and the next batch may go well
            _log.exception("a batch of task %r failed", task)
            batch.fail(error)
        return entered

    def _tell_running(self) -> None:
        self._running = [job for batch in self._batches for job in batch.jobs]

    def _fail_if_outdated(self, job: Job) -> None:
        """Fail a job if a reload has changed how its task reads or answers."""
        with suppress(UnknownTaskError):
            _, entry = self._served.bundle_of(job.task)
            if _read_by(entry) != _read_by(job.entry):
                job.fail(compiled_anew(job.task))


def _read_by(task: TaskEntry) -> tuple[object, ...]:
    """What a request was read by, and what its answer is written by."""
    prompts = None if task.generation is None else task.generation.prompts
    return (task.kind, task.classes, task.max_length, prompts, task.add_bos_token)
