"""The queue before the worker: it is bounded, and the scheduler says which jobs leave it."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from weightpager.errors import QueueFullError, RequestError
from weightpager.server.scheduling.job import Job, shutting_down
from weightpager.server.scheduling.scheduler import Plan

Command = Callable[[], None]


@dataclass(frozen=True)
class Taken:
    """Jobs that begin together; or, if ``run`` is a number, the batch under way that goes on."""

    jobs: list[Job]
    run: int | None


class JobQueue:
    """A queue of at most ``limit`` jobs, and of commands, which go first. Several threads may use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._reserved = 0
        self._commands: deque[Command] = deque()
        self._closed = False

    def reserve(self, count: int) -> None:
        """Reserve places for all texts of a request, before any work is done for them.

        Raises:
            RequestError: the queue never has room for so many.
            QueueFullError: the queue has no room for all of them now.
            ServerClosedError: the queue is closed.
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
        """Free places that were reserved."""
        with self._changed:
            self._reserved -= count

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue jobs in places that were reserved for them.

        Raises:
            ServerClosedError: the queue is closed; the places stay reserved.
        """
        with self._changed:
            self._check_open()
            self._reserved -= len(jobs)
            self._jobs.extend(jobs)
            self._changed.notify()

    def command(self, command: Command) -> None:
        """Have a command run between two steps.

        Raises:
            ServerClosedError: the queue is closed.
        """
        with self._changed:
            self._check_open()
            self._commands.append(command)
            self._changed.notify()

    def take(self, choose: Callable[[Sequence[Job]], Plan]) -> Command | Taken | None:
        """Wait for something to do: a command, jobs that begin, or a batch that goes on. Cancelled jobs are dropped.

        Args:
            choose: which jobs begin, or which batch goes on; times are those of `time.monotonic`.

        Returns:
            What to do; None once the queue is closed and ``choose`` finds nothing.
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
        """How many jobs wait, by task."""
        with self._changed:
            return dict(Counter(job.task for job in self._jobs if not job.cancelled))

    def taken(self) -> int:
        """How many places are taken: by jobs that wait, and by texts that are still being read."""
        with self._changed:
            return sum(not job.cancelled for job in self._jobs) + self._reserved

    def close(self) -> list[Job]:
        """Close the queue. The jobs that were waiting leave it, and are returned."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify()
            return left

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def _taken(self) -> int:
        return len(self._jobs) + self._reserved

    def _remove(self, places: Sequence[int]) -> list[Job]:
        taken = [self._jobs[place] for place in places]
        for place in sorted(places, reverse=True):
            del self._jobs[place]
        return taken

    def _check_open(self) -> None:
        if self._closed:
            raise shutting_down()
