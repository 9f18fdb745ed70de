"""What waits for the worker: bounded, emptied as the scheduler says."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightpager.errors import QueueFullError, RequestError, ServerClosedError
from weightpager.server.scheduling.job import Job
from weightpager.server.scheduling.scheduler import Plan

Command = Callable[[], None]


@dataclass(frozen=True)
class Taken:
    """Jobs that begin together, or the number of the batch under way that goes on."""

    jobs: list[Job]
    run: int | None


class JobQueue:
    """At most ``limit`` jobs in the order of arrival, and commands, which go first. Safe for several threads."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._reserved = 0
        self._commands: deque[Command] = deque()
        self._closed = False

    def reserve(self, count: int) -> None:
        """Places for a request's texts, all or none, before anything is done for them.

        Raises:
            RequestError: there never is room for so many.
            QueueFullError: there isn't room for all.
            ServerClosedError: nothing is taken any more.
        """
        with self._changed:
            self._check_open()
            if count > self.limit:
                raise RequestError(f"expected at most {self.limit} texts, as the server's --queue, found {count}")
            if self._taken + count > self.limit:
                self._jobs = [job for job in self._jobs if not job.cancelled]
            if self._taken + count > self.limit:
                raise QueueFullError(f"{self._taken} of {self.limit} texts are waiting; ask again later")
            self._reserved += count

    def give_up(self, count: int) -> None:
        """So many reserved places aren't needed."""
        with self._changed:
            self._reserved -= count

    def put(self, jobs: Sequence[Job]) -> None:
        """Jobs, in as many reserved places.

        Raises:
            ServerClosedError: nothing is taken any more; the places are still reserved.
        """
        with self._changed:
            self._check_open()
            self._reserved -= len(jobs)
            self._jobs.extend(jobs)
            self._changed.notify()

    def command(self, command: Command) -> None:
        """Have something done between two batches.

        Raises:
            ServerClosedError: nothing is taken any more.
        """
        with self._changed:
            self._check_open()
            self._commands.append(command)
            self._changed.notify()

    def take(self, choose: Callable[[Sequence[Job]], Plan]) -> Command | Taken | None:
        """Wait for something to do: a command, jobs that begin, or a batch that goes on.

        None once the queue is closed and ``choose`` finds nothing. Jobs that were cancelled are dropped. Times of
        ``choose`` are those of `time.monotonic`.
        """
        with self._changed:
            while True:
                if self._commands:
                    return self._commands.popleft()
                self._jobs = [job for job in self._jobs if not job.cancelled]
                plan = choose(self._jobs)
                if plan.places or plan.run is not None:
                    return Taken(self._remove(plan.places), plan.run)
                if self._closed:
                    return None
                self._changed.wait(None if plan.again == math.inf else max(0.0, plan.again - time.monotonic()))

    def waiting(self) -> dict[str, int]:
        """How many wait, by task."""
        with self._changed:
            return dict(Counter(job.task for job in self._jobs if not job.cancelled))

    def close(self) -> list[Job]:
        """Take nothing any more; the jobs that were waiting, which won't be taken either."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify()
            return left

    @property
    def closed(self) -> bool:
        """Whether nothing is taken any more."""
        return self._closed

    @property
    def _taken(self) -> int:
        return len(self._jobs) + self._reserved

    def _remove(self, places: Sequence[int]) -> list[Job]:
        taken = [self._jobs[place] for place in places]
        self._jobs = [job for place, job in enumerate(self._jobs) if place not in places]
        return taken

    def _check_open(self) -> None:
        if self._closed:
            raise ServerClosedError("the server is shutting down; ask again when it is back")
