"""`RayWorkers`: a compile's jobs as tasks of a Ray cluster."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic

import ray
import torch
from ray.exceptions import RayError, RayTaskError

from weightpager.compiler.resume.journal import Done, Job, Key, Value
from weightpager.errors import CompileError, ConfigError, first_line
from weightpager.progress import StepProgress
from weightpager.ray.cluster import cluster
from weightpager.ray.job import Bytes, JobResult, Parcel, Surroundings, environment, pack, ready, work


class Board:
    """The last that was told of each job."""

    def __init__(self) -> None:
        self._told: dict[int, tuple[int, int]] = {}

    def tell(self, job: int, done: int, total: int) -> None:
        self._told[job] = done, total

    def news(self) -> dict[int, tuple[int, int]]:
        told, self._told = self._told, {}
        return told


_log = logging.getLogger(__name__)

BASE_BYTES = 512 << 20
"""Memory of a worker before its first job: torch and transformers, and buffers of their libraries."""

RETRIES = 3
"""Times that a job is done again whose worker was killed, or whose machine is gone."""

MOST_STARTED = 16
"""Workers that are started before there is a job: most compiles have no more tasks."""

_LOOK = 0.5
"""Seconds between two looks at the board."""

_SMALL = 64 << 10
"""Bytes of a storage below which it travels with the job itself."""

Ref = Any
"""A `ray.ObjectRef`, whose type knows nothing of what it refers to."""


_task: Any = ray.remote(work)
_ready: Any = ray.remote(ready)


class RayWorkers:
    """Does jobs as Ray tasks, each with as many CPUs as this process has threads.

    What tensors hold goes to the object store once for all jobs that are given together. A worker has a copy of what
    its job needs while it works, and of nothing else.
    """

    here = False

    def __init__(self, memory: float, sends_environment: bool) -> None:
        """Use the cluster that this process is connected to.

        Args:
            memory: bytes that the largest machine offers to tasks; none is declared to take more.
            sends_environment: whether workers must be given this process's variables: those that it started have them.
        """
        self._memory = memory
        self._runtime = {"runtime_env": {"env_vars": environment()}} if sends_environment else {}
        self._board: Any = None
        self._starting: list[Ref] = []
        self._begun = 0
        self._running: _Running[Any] | None = None
        self._others: set[str] = set()

    def start(self, count: int, threads: int) -> None:
        """Have workers import what they need, seconds of it, while the compile loads and trains."""
        task = _ready.options(num_cpus=threads, **self._runtime)
        self._starting = [task.remote() for _ in range(min(count, MOST_STARTED))]

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        """Implements `Workers.each`."""
        here, sender = Surroundings.here(), _Sender()
        running = self._running = _Running(told)
        try:
            for key, job in jobs.items():
                self._begun += 1
                running.add(self._begin(sender.pack(job), here, copies), key, self._begun)
            while running.refs:
                ended, _ = ray.wait(running.refs, timeout=_LOOK)
                running.tell(self._news())
                for ref in ended:
                    result = _found(ref, running)
                    if result is not None:
                        self._compare(result, here)
                        yield Done(running.took(ref, result.steps), result.unpacked(), result.seconds)
                    del result
        finally:
            running.cancel()
        if running.failure is not None:
            raise running.failure

    def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
        for ref in self._starting:
            with suppress(RayError):
                ray.cancel(ref)
        if self._board is not None:
            with suppress(RayError):
                ray.kill(self._board)
            self._board = None

    def _begin(self, packed: tuple[Parcel[int | Bytes], list[Ref]], here: Surroundings, copies: int) -> Ref:
        parcel, refs = packed
        task = _task.options(
            num_cpus=here.arithmetic.threads,
            memory=min(BASE_BYTES + copies * parcel.bytes, self._memory),
            max_retries=RETRIES,
            **self._runtime,
        )
        return task.remote(parcel, here, self._told_on(), self._begun, *refs)

    def _told_on(self) -> Any:
        if self._board is None:
            self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        return self._board

    def _news(self) -> Mapping[int, tuple[int, int]]:
        """What is on the board; nothing where it is gone, or just starting: progress is worth no waiting."""
        with suppress(RayError):
            found: dict[int, tuple[int, int]] = ray.get(self._told_on().news.remote(), timeout=_LOOK)
            return found
        return {}

    def _compare(self, found: JobResult, here: Surroundings) -> None:
        """Say once of each other processor that it may decide on last digits."""
        if found.processor not in {here.processor, *self._others}:
            self._others.add(found.processor)
            text = "a worker computes with %s, this process with %s: the bundle may differ in last digits from its own"
            _log.warning(text, found.processor, here.processor)


class _Sender:
    """Packs jobs; what several of them hold is put into the object store once."""

    def __init__(self) -> None:
        self._put: dict[int, Ref] = {}

    def pack(self, job: Job[Any]) -> tuple[Parcel[int | Bytes], list[Ref]]:
        """A parcel that says which of these references each storage is; small ones are in it."""
        refs: list[Ref] = []

        def put(content: Bytes) -> int | Bytes:
            if content.nbytes < _SMALL:
                copy: Bytes = content.copy()
                return copy
            where = int(content.ctypes.data)
            if where not in self._put:
                self._put[where] = ray.put(content)
            refs.append(self._put[where])
            return len(refs) - 1

        return pack(job, put), refs


@dataclass(frozen=True)
class _One(Generic[Key]):
    """A job that was begun.

    Attributes:
        place: its place in the order in which jobs were given.
        number: its number on the board.
    """

    key: Key
    place: int
    number: int


class _Running(Generic[Key]):
    """Jobs that were begun and haven't ended.

    Attributes:
        failure: the failure of the first job, in the order of jobs, that failed; those behind it are ended.
    """

    def __init__(self, told: Callable[[Key], StepProgress]) -> None:
        self.failure: BaseException | None = None
        self._told = told
        self._jobs: dict[Ref, _One[Key]] = {}
        self._count = 0

    @property
    def refs(self) -> list[Ref]:
        return list(self._jobs)

    def add(self, ref: Ref, key: Key, number: int) -> None:
        self._jobs[ref] = _One(key, self._count, number)
        self._count += 1

    def has(self, ref: Ref) -> bool:
        return ref in self._jobs

    def name(self, ref: Ref) -> str:
        key = self._jobs[ref].key
        return " ".join(map(str, key)) if isinstance(key, tuple) else str(key)

    def tell(self, news: Mapping[int, tuple[int, int]]) -> None:
        """Hand on what was told of jobs by number."""
        for one in self._jobs.values():
            if one.number in news:
                self._told(one.key)(*news[one.number])

    def took(self, ref: Ref, steps: tuple[int, int] | None) -> Key:
        """A job has ended well; its key."""
        key = self._jobs.pop(ref).key
        if steps is not None:
            self._told(key)(*steps)
        return key

    def failed(self, ref: Ref, failure: BaseException) -> None:
        """A job has failed: as if all were done in turn, no later one is wanted, and all earlier ones still are."""
        self.failure = failure
        place = self._jobs.pop(ref).place
        self.cancel(place)

    def cancel(self, after: int = -1) -> None:
        """End the jobs behind a place."""
        for ref, one in list(self._jobs.items()):
            if one.place > after:
                del self._jobs[ref]
                with suppress(RayError):
                    ray.cancel(ref, force=True)


def _found(ref: Ref, running: _Running[Any]) -> JobResult | None:
    """What a job has found; None if it failed, or isn't wanted any more."""
    if not running.has(ref):
        return None
    try:
        found: Any = ray.get(ref)
    except RayTaskError as error:
        running.failed(ref, _cause(error))
    except RayError as error:
        running.failed(ref, _killed(running.name(ref), error))
    else:
        if isinstance(found, JobResult):
            return found
        running.failed(ref, found.error())
    return None


def _cause(error: RayTaskError) -> BaseException:
    """What a job raised by mistake; a worker without weightpager is a mistake of others."""
    cause: BaseException = error.cause
    if isinstance(cause, ModuleNotFoundError):
        return ConfigError(
            f"--ray: expected the package {cause.name!r} on every machine of the cluster, found none; install there "
            "what is installed here"
        )
    cause.__cause__ = error
    return cause


def _killed(name: str, error: RayError) -> CompileError:
    return CompileError(
        f"{name}: expected a worker of the Ray cluster to end this job, found after {RETRIES} retries: "
        f"{first_line(error)}; see whether its machines run out of memory ('ray status'), or compile without --ray"
    )


_PLACES = "Ray: up to %d tasks at a time, each with %d threads; fewer threads (OMP_NUM_THREADS) let more run"


@contextmanager
def on_ray(address: str) -> Iterator[RayWorkers]:
    """Workers of a cluster, for `weightpager.compile`. At the end no job goes on, and a cluster that was started ends.

    Args:
        address: as `cluster` takes it.

    Raises:
        ConfigError: there is no cluster at the address, or none of its machines has as many CPUs as this process
            has threads.
    """
    with cluster(address) as started:
        threads, machines = torch.get_num_threads(), _machines()
        memory = max(one.get("memory", 0) for one in machines)
        count = sum(int(one["CPU"] // threads) for one in machines)
        _log.info(_PLACES, count, threads)
        workers = RayWorkers(memory, sends_environment=not started)
        workers.start(count, threads)
        try:
            yield workers
        finally:
            workers.close()


def _machines() -> list[dict[str, float]]:
    """What machines offer that have enough CPUs, at least one."""
    threads = torch.get_num_threads()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    machines: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    fits = [machine for machine in machines if machine.get("CPU", 0) >= threads]
    if not fits:
        most = max((machine.get("CPU", 0) for machine in machines), default=0)
        raise ConfigError(
            f"--ray: expected a machine with {threads} CPUs, as many as this process has threads, found at most "
            f"{most:g}; set OMP_NUM_THREADS to at most that"
        )
    return fits
