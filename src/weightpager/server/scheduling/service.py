"""The service that the routes talk to: an engine, or several bundles, with a queue before it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from weightpager.answers.work import Work
from weightpager.bundle import TaskEntry
from weightpager.engine import Engine, Models
from weightpager.engine.bundle_change import BundleChange
from weightpager.errors import RequestError, TaskTooLargeError, UnknownTaskError, shown
from weightpager.machine.memory import give_back
from weightpager.server.bundle_folder import BundleFolder
from weightpager.server.inputs.picture_inputs import body_bytes
from weightpager.server.metrics import Metrics
from weightpager.server.scheduling.job import Job, Listener
from weightpager.server.scheduling.scheduler import JobQueue
from weightpager.server.scheduling.served_bundle import RequestReaders, ServedBundle
from weightpager.server.scheduling.settings import Settings
from weightpager.server.scheduling.worker import Worker

_log = logging.getLogger(__name__)

_STUCK = 10.0
"""Seconds that a step may take. With a longer one the server isn't ready, and a balancer sends requests elsewhere."""

_LAST = 3.0
"""Seconds that the worker has to end by itself, and again once the engine is closed under it."""


class Service:
    """Runs texts on the tasks of an engine, or of several bundles.

    Attributes:
        runs: the engine, or the bundles; closed with the service.
        started: seconds since 1970.
        idle: seconds after which a bundle that nobody asks sleeps; None never.
        folder: has the bundles that are served; None where they were named.
    """

    def __init__(
        self,
        runs: Engine | Models,
        settings: Settings,
        *,
        idle: float | None = None,
        folder: BundleFolder | None = None,
    ) -> None:
        """Nothing runs until `start`.

        Raises:
            BundleFormatError: transformers can't read a bundle's tokenizer or image processor.
            ConfigError: tasks read images or pictures, and Pillow isn't installed.
        """
        self.runs, self.settings, self.idle, self.folder = runs, settings, idle, folder
        self.bundles: dict[str, ServedBundle] = {}
        if isinstance(runs, Engine):
            self.bundles[""] = ServedBundle(runs, settings)
        else:
            for name in runs.bundles:
                self.serve(name)
        give_back()  # what opening tokenizers has left
        self.queue = JobQueue(settings.queue)
        self.metrics = Metrics(lambda: self.bundles, self.queue)
        self.worker = Worker(self, self.queue, settings.policy, self.metrics)
        self.started = time.time()
        self._untidy = False  # whether memory was freed that is to be given back

    @property
    def engine(self) -> Engine:
        """The engine of a server of one."""
        assert isinstance(self.runs, Engine), "a server of several bundles has an engine for each"
        return self.runs

    def serve(self, name: str) -> None:
        """Serve one of the bundles that share the budget, from now on; only in the worker's own thread, or before it.

        Errors are those of `Models.wake`, and of the beginning.
        """
        assert isinstance(self.runs, Models)
        prefix = "" if len(self.runs.bundles) == 1 and self.folder is None else f"{name}/"
        self.bundles = {**self.bundles, name: ServedBundle(self.runs.wake(name), self.settings, prefix)}

    def start(self) -> None:
        for bundle in self.bundles.values():
            self._warn_of_missing(bundle)
            self._warn_of_cuts(bundle)
        self.worker.start()

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """All tasks by the names that clients know, which the entries have, too."""
        return {name: task for bundle in self.bundles.values() for name, task in bundle.tasks.items()}

    def task(self, name: str) -> TaskEntry:
        """A task by its name, or by its name in the one bundle that has it. Raises an `UnknownTaskError`."""
        return self.bundle_of(name)[1]

    def bundle_of(self, name: str) -> tuple[ServedBundle, TaskEntry]:
        """The bundle that has a task, and the task. Errors are those of `task`."""
        having = [(bundle, task) for bundle in self.bundles.values() if (task := bundle.found(name)) is not None]
        exact = [found for found in having if found[1].name == name]
        if len(exact or having) == 1:
            return (exact or having)[0]
        if having:
            raise UnknownTaskError(name, [task.name for _, task in having], "several bundles have it")
        raise UnknownTaskError(name, self.tasks)

    async def reading(self, name: str) -> tuple[ServedBundle, RequestReaders, TaskEntry]:
        """The bundle that has a task, what reads requests to it, and the task. Errors are those of `task`.

        A request may use it for as long as the settings give it.
        """
        bundle, task = self.bundle_of(name)
        return bundle, bundle.readers() if bundle.reads else await asyncio.to_thread(bundle.readers), task

    def named(self, name: str) -> ServedBundle:
        """A bundle by its name.

        Raises:
            RequestError: there is none.
        """
        if name not in self.bundles or not name:
            raise RequestError(f"expected one of {', '.join(self.bundles) or 'none'}, found {shown(name)}", "bundle")
        return self.bundles[name]

    def name_of(self, task: str) -> str:
        """The name of a task for what runs tasks."""
        return self.bundle_of(task)[0].whole(task)

    @property
    def current(self) -> str | None:
        """The task that was asked for last; None before the first, and once it has left."""
        last = self.runs.monitor.current
        found = (bundle.named(last) for bundle in self.bundles.values()) if last is not None else ()
        return next((task for task in found if task is not None), None)

    @property
    def bytes_read(self) -> int:
        """Bytes of pages and rows that were read since the server started."""
        if isinstance(self.runs, Engine):
            return self.runs.report().bytes_read
        return sum(bundle.bytes_read for bundle in self.runs.bundles.values())

    def fits(self, name: str) -> bool:
        """Whether the present budget has room for a task. Errors are those of `task`."""
        bundle, task = self.bundle_of(name)
        try:
            self.runs.check_fits(bundle.whole(task.name))
        except TaskTooLargeError:
            return False
        return True

    def fitting(self, tasks: Iterable[str]) -> dict[str, bool]:
        """As `fits` for each of these tasks; those that a reload takes away meanwhile are left out."""
        found = {}
        for task in tasks:
            with suppress(UnknownTaskError):
                found[task] = self.fits(task)
        return found

    def fit_together(self, tasks: Iterable[str]) -> bool:
        """Whether these tasks may have turns without that a bundle of them sleeps meanwhile."""
        return isinstance(self.runs, Engine) or self.runs.fit_together(map(self.name_of, tasks))

    def _warn_of_missing(self, bundle: ServedBundle) -> None:
        """Log a warning for every task that can't run; it names the budget that the task needs."""
        for task in bundle.tasks.values():
            try:
                self.runs.check_fits(bundle.whole(task.name))
            except TaskTooLargeError as error:
                _log.warning("%s", error)

    def _warn_of_cuts(self, bundle: ServedBundle) -> None:
        """Log a warning for every task whose answers may be shorter here than those that `eval` measures."""
        most = self.settings.most_new_tokens
        for task in bundle.tasks.values():
            if task.generation is not None and task.generation.max_new_tokens > most:
                stated = task.generation.max_new_tokens
                text = "%s: answers end after --max-new-tokens %d; its task file allows %d"
                _log.warning(text, task.name, most, stated)

    @property
    def ready(self) -> bool:
        """Whether requests are taken, and the worker hasn't been busy with one thing for too long."""
        return self.worker.alive and not self.queue.closed and not self.stuck

    @property
    def stuck(self) -> bool:
        """Whether one step or load has kept the worker busy for longer than a request should wait."""
        return self.worker.busy > min(_STUCK, self.settings.timeout)

    @property
    def body_bytes(self) -> int:
        """Bytes of a request's largest body: what the settings allow, and room for pictures where tasks read any."""
        largest = (body_bytes(self.settings.body_bytes, each.bundle.pictures) for each in self.bundles.values())
        return max(largest)

    def admit(self, task: TaskEntry, texts: int, pictures: int = 0) -> None:
        """Reserve places in the queue for a request's texts, or its pictures, before anything is done for them.

        Raises:
            TaskTooLargeError: the budget never holds the task.
            RequestError: they are more than may ever wait.
            QueueFullError: too many are waiting.
            ServerClosedError: the server is shutting down.
        """
        bundle, _ = self.bundle_of(task.name)
        self.runs.check_fits(bundle.whole(task.name))
        bundle.readers().inputs.lanes.check_room(texts)
        self.queue.reserve(max(texts, pictures))

    def submit(
        self, task: TaskEntry, works: Sequence[Work], listener: Listener, deadline: float | None = None
    ) -> list[Job]:
        """Queue a request's texts, in places that were reserved; the listener is told of each by its number.

        Without a deadline, by `time.monotonic`, the request has its whole time from now on.

        Raises:
            RequestError: one is too long.
            ServerClosedError: the server is shutting down.
        """
        bundle, _ = self.bundle_of(task.name)
        bundle.check(task, works)
        now = time.monotonic()
        deadline = now + self.settings.timeout if deadline is None else deadline
        limits = bundle.batch_limits
        jobs = [
            Job(
                task,
                work,
                index,
                now,
                deadline,
                listener,
                limits,
                long=bundle.is_long(work),
                cached=bundle.is_cached(task, work),
            )
            for index, work in enumerate(works)
        ]
        self.queue.put(jobs)
        return jobs

    def set_budget(self, budget: str) -> None:
        """Use more or less memory; only in the worker's own thread. Errors are those of the engine."""
        self.runs.set_budget(budget)
        for bundle in self.bundles.values():
            self._warn_of_missing(bundle)

    def add(self, path: Path) -> str:
        """Serve one more bundle; only in the worker's own thread. Errors are those of `Models.add` and `serve`."""
        models = self._models
        name = models.add(path)
        try:
            self.serve(name)
        except BaseException:
            models.remove(name)
            raise
        return name

    def remove(self, name: str) -> None:
        """Serve a bundle no longer; only in the worker's own thread. Errors are those of `Models.remove`."""
        self._models.remove(name)
        gone = self.bundles[name]
        self.bundles = {other: bundle for other, bundle in self.bundles.items() if other != name}
        gone.close()

    def sleep(self, name: str) -> None:
        """Put a bundle to sleep; only in the worker's own thread. Errors are those of `Models.sleep`."""
        self._models.sleep(name)

    @property
    def _models(self) -> Models:
        if isinstance(self.runs, Engine):
            raise RequestError("expected a server of several bundles, or with --idle, found one of a single bundle")
        return self.runs

    def reload(self, name: str = "") -> BundleChange:
        """Take over changes of a bundle; only in the worker's own thread. Errors are those of the engine."""
        bundle = self.bundles[name]
        change = self.runs.reload() if isinstance(self.runs, Engine) else self.runs.reload(name)
        if bundle.is_awake:
            bundle.follow()
        self._warn_of_missing(bundle)
        self._warn_of_cuts(bundle)
        return change

    def folder_has_changed(self) -> bool:
        """Whether bundles have come, gone or changed in the folder of those that are served."""
        return self.folder is not None and self.folder.has_changed

    def follow_folder(self) -> None:
        """Take over what has changed there; only in the worker's own thread. What fails is logged."""
        if self.folder is not None:
            self.folder.take_over(self)

    def rest(self) -> None:
        """Put to sleep what is idle, and close what reads requests to it; only in the worker's own thread."""
        if isinstance(self.runs, Models):
            for name in self.runs.sleep_idle(self.idle) if self.idle is not None else ():
                _log.info("%s sleeps: nobody has asked it for %g s", name, self.idle)
            if self._untidy:  # threads have let go of their tokenizers meanwhile, which refer to each other
                gc.collect()
                give_back()
            self._untidy = False
            for bundle in self.bundles.values():
                self._untidy = bundle.doze() or self._untidy

    def retry_after(self) -> int:
        """Seconds after which a client whose request was refused may try again."""
        return max(1, round(self.settings.policy.patience))

    def end(self) -> None:
        """Refuse the jobs that wait, and end those under way after their present forward. Returns at once."""
        self.worker.stop(timeout=0)

    def close(self) -> None:
        """Refuse the jobs that wait, end those under way, and close the engine.

        Work that doesn't end within some seconds is left behind in its thread; the worker is still alive then.
        """
        for bundle in self.bundles.values():
            bundle.close()
        self.worker.stop(timeout=_LAST)
        # Closing waits for the layer that is being computed, which may take long: it has a thread of its own.
        closing = threading.Thread(target=self.runs.close, name="weightpager-close", daemon=True)
        closing.start()
        closing.join(_LAST)
        self.worker.stop(timeout=_LAST)
