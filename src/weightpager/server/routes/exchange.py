"""The exchange between a request and its jobs: it brings events from the worker, and ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request

from weightpager.answers.work import Outcome, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestTimeoutError
from weightpager.server.scheduling.job import Done, Event, Failed, Job
from weightpager.server.scheduling.service import Service

_GRACE = 1.0
"""Seconds beyond a request's time in which the worker may say itself that it is over."""

_TOO_LONG = "the request took longer than the server gives it"
_Result = TypeVar("_Result")


class ClientGoneError(Exception):
    """The client has gone away: nobody reads the answer."""


class Exchange:
    """Events of one request's jobs, in the order in which they happened."""

    def __init__(self, deadline: float) -> None:
        """``deadline`` is by `time.monotonic`."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = self._loop.create_future()
        self._deadline = deadline
        self.jobs: list[Job] = []

    def listen(self, event: Event) -> None:
        """Take an event from the worker's thread. It never waits: events pile up here, not there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody waits for events
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_gone(self, request: Request) -> None:
        """Wait until the client goes away; then cancel its jobs and end the exchange."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()
        self._gone.set_result(None)
        self._events.put_nowait(None)

    async def during(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of work that comes before the jobs. The work is cancelled if the client goes away.

        Raises:
            RequestTimeoutError: it wasn't done in time.
            ClientGoneError: the client has gone away.
            Exception: whatever the work raises.
        """
        task = asyncio.ensure_future(work)
        left = max(0.0, self._deadline - time.monotonic())
        try:
            await asyncio.wait({task, self._gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if self._gone.done():
                raise ClientGoneError
            raise RequestTimeoutError(_TOO_LONG)
        finally:
            task.cancel()

    def submit(self, service: Service, task: TaskEntry, works: Sequence[Work]) -> None:
        """Queue the works that were read. Errors are those of `Service.submit`."""
        self.jobs = service.submit(task, works, self.listen, self._deadline)

    def cancel(self) -> None:
        """Cancel the jobs."""
        for job in self.jobs:
            job.cancel()

    async def next(self) -> Event:
        """The next event.

        Raises:
            RequestTimeoutError: none came in time.
            ClientGoneError: the client has gone away.
            Exception: whatever a job failed with.
        """
        left = self._deadline + _GRACE - time.monotonic()
        try:
            # An event that is there already is given however late it is: a slow reader loses nothing.
            event = self._events.get_nowait() if self._events.qsize() else await self._come(left)
        except asyncio.TimeoutError:
            raise RequestTimeoutError(_TOO_LONG) from None
        if event is None:
            raise ClientGoneError
        if isinstance(event, Failed):
            raise event.error
        return event

    @property
    def waited(self) -> float | None:
        """The longest wait of a job that has begun, in seconds; None as long as none has."""
        return max((job.began - job.arrived for job in self.jobs if job.began is not None), default=None)

    async def _come(self, seconds: float) -> Event | None:
        return await asyncio.wait_for(self._events.get(), max(0.0, seconds))

    async def outcomes(self, count: int) -> list[Outcome]:
        """The outcomes of all jobs, in the order of the texts. Errors are those of `next`."""
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < count:
            event = await self.next()
            if isinstance(event, Done):
                outcomes[event.index] = event.outcome
        return [outcomes[index] for index in range(count)]


@asynccontextmanager
async def exchange(service: Service, request: Request, task: TaskEntry, texts: int) -> AsyncIterator[Exchange]:
    """Reserve a request's places in the queue, before its texts are read. Jobs that outlive the block are cancelled.

    Raises:
        RequestError, QueueFullError, ServerClosedError, TaskTooLargeError: as `Service.admit`.
    """
    service.admit(task, texts)
    events = Exchange(time.monotonic() + service.settings.timeout)
    request.state.task = task.name  # for the log, now that it is known to be a name of ours
    watching = asyncio.create_task(events.until_gone(request))
    try:
        yield events
    finally:
        watching.cancel()
        events.cancel()
        if not events.jobs:
            service.queue.give_up(texts)
        request.state.waited = events.waited
