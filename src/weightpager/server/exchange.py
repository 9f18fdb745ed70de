"""A request's side of its jobs: events from the worker's thread, an end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import Request

from weightpager.bundle import TaskEntry
from weightpager.errors import RequestTimeoutError
from weightpager.server.job import Done, Event, Failed, Job
from weightpager.server.service import Service
from weightpager.server.work import Outcome, Work

_GRACE = 1.0
"""Seconds that the worker has to say itself that a request's time is over."""


class ClientGoneError(Exception):
    """Nobody reads the answer any more."""


class Exchange:
    """Events of one request's jobs, in the order in which they happened."""

    def __init__(self, deadline: float) -> None:
        """``deadline`` by `time.monotonic`."""
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._deadline = deadline

    def listen(self, event: Event) -> None:
        """From the worker's thread: never waits, as events pile up here and not there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody wants to know
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_gone(self, request: Request, jobs: Sequence[Job]) -> None:
        """When the client goes away, cancel its jobs and end the exchange."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        for job in jobs:
            job.cancel()
        self._events.put_nowait(None)

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
            raise RequestTimeoutError("the request took longer than the server gives it") from None
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
async def exchange(
    service: Service, request: Request, task: TaskEntry, works: Sequence[Work]
) -> AsyncIterator[Exchange]:
    """Submit a request's texts; those that haven't ended when the block does are cancelled.

    Raises:
        RequestError, QueueFullError, ServerClosedError: as `Service.submit`.
    """
    found = Exchange(time.monotonic() + service.settings.timeout)
    jobs = service.submit(task, works, found.listen)
    request.state.task = task.name  # for the log, now that it is known to be a name of ours
    watching = asyncio.create_task(found.until_gone(request, jobs))
    try:
        yield found
    finally:
        watching.cancel()
        for job in jobs:
            job.cancel()
        request.state.waited = max((job.began - job.arrived for job in jobs if job.began is not None), default=None)
