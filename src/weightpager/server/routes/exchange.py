"""A request's side of its jobs: events from the worker's thread, an end when the client goes away."""

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
"""Seconds that the worker has to say itself that a request's time is over."""

_TOO_LONG = "the request took longer than the server gives it"
_Result = TypeVar("_Result")


class ClientGoneError(Exception):
    """Nobody reads the answer any more."""


class Exchange:
    """Events of one request's jobs, in the order in which they happened."""

    def __init__(self, deadline: float) -> None:
        """``deadline`` by `time.monotonic`."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = self._loop.create_future()
        self._deadline = deadline
        self.jobs: list[Job] = []

    def listen(self, event: Event) -> None:
        """From the worker's thread: never waits, as events pile up here and not there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody wants to know
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_gone(self, request: Request) -> None:
        """When the client goes away, cancel its jobs and end the exchange."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()
        self._gone.set_result(None)
        self._events.put_nowait(None)

    async def during(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """What comes of some work that goes before the jobs; it is cancelled if nobody waits for it any more.

        Raises:
            RequestTimeoutError: it wasn't done in time.
            ClientGoneError: nobody wants it any more.
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
        """Queue what was read. Errors are those of `Service.submit`."""
        self.jobs = service.submit(task, works, self.listen, self._deadline)

    def cancel(self) -> None:
        """Nobody wants the jobs any more."""
        for job in self.jobs:
            job.cancel()

    async def next(self) -> Event:
        """The next event.

        Raises:
            RequestTimeoutError: none came in time.
            ClientGoneError: nobody wants it any more.
            Exception: whatever a job failed with.
        """
        left = self._deadline + _GRACE - time.monotonic()
        try:
            # What is there already is no matter of time: a slow reader gets it however late it asks.
            event = self._events.get_nowait() if self._events.qsize() else await self._come(left)
        except asyncio.TimeoutError:
            raise RequestTimeoutError(_TOO_LONG) from None
        if event is None:
            raise ClientGoneError
        if isinstance(event, Failed):
            raise event.error
        return event

    async def _come(self, seconds: float) -> Event | None:
        return await asyncio.wait_for(self._events.get(), max(0.0, seconds))

    async def outcomes(self, count: int) -> list[Outcome]:
        """Of all jobs, in their order. Errors are those of `next`."""
        found: dict[int, Outcome] = {}
        while len(found) < count:
            event = await self.next()
            if isinstance(event, Done):
                found[event.index] = event.outcome
        return [found[index] for index in range(count)]


@asynccontextmanager
async def exchange(service: Service, request: Request, task: TaskEntry, texts: int) -> AsyncIterator[Exchange]:
    """A request's places in the queue, taken before its texts are read; what hasn't ended with the block is cancelled.

    Raises:
        RequestError, QueueFullError, ServerClosedError, TaskTooLargeError: as `Service.admit`.
    """
    service.admit(task, texts)
    found = Exchange(time.monotonic() + service.settings.timeout)
    request.state.task = task.name  # for the log, now that it is known to be a name of ours
    watching = asyncio.create_task(found.until_gone(request))
    try:
        yield found
    finally:
        watching.cancel()
        found.cancel()
        if not found.jobs:
            service.queue.give_up(texts)
        request.state.waited = max(
            (job.began - job.arrived for job in found.jobs if job.began is not None), default=None
        )
