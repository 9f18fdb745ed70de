"""The exchange between a request and its jobs: it brings events from the worker, and ends when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from ipaddress import ip_address
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request

from weightpager.answers.work import Outcome, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestTimeoutError
from weightpager.server.scheduling.job import Event, Job, TextDone, TextFailed
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings

_GRACE = 1.0
"""Seconds beyond a request's time in which the worker may say itself that it is over."""

_TOO_LONG = "the request took longer than the server gives it"
_Work = TypeVar("_Work", bound=Work)


class ClientGoneError(Exception):
    """The client has gone away: nobody reads the answer."""


class Exchange:
    """Events of one request's jobs, in the order in which they happened."""

    def __init__(self, service: Service, request: Request, task: TaskEntry, texts: int) -> None:
        self._service, self._request, self._task, self._texts = service, request, task, texts
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._gone = self._loop.create_future()
        self._deadline = time.monotonic() + service.settings.timeout
        self.jobs: list[Job] = []

    def listen(self, event: Event) -> None:
        """Take an event from the worker's thread. It never waits: events pile up here, not there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, so nobody waits for events
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def until_gone(self) -> None:
        """Wait until the client goes away; then cancel its jobs and end the exchange."""
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.cancel()
        self._gone.set_result(None)
        self._events.put_nowait(None)

    async def submit(self, read: Coroutine[Any, Any, list[_Work]]) -> list[_Work]:
        """Read the works, and queue them. Reading is cancelled if the client goes away.

        Raises:
            RequestTimeoutError: they weren't read in time.
            ClientGoneError: the client has gone away.
            Exception: whatever reading raises, or `Service.submit`.
        """
        works = await self._during(read)
        self.jobs = self._service.submit(self._task, works, self.listen, self._deadline)
        return works

    def cancel(self) -> None:
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
        if isinstance(event, TextFailed):
            raise event.error
        return event

    @property
    def waited(self) -> float | None:
        """The longest wait of a job that has begun, in seconds; None as long as none has."""
        return max((job.began - job.arrived for job in self.jobs if job.began is not None), default=None)

    async def outcomes(self) -> list[Outcome]:
        """The outcomes of all jobs, in the order of the texts. Errors are those of `next`."""
        outcomes: dict[int, Outcome] = {}
        while len(outcomes) < self._texts:
            event = await self.next()
            if isinstance(event, TextDone):
                outcomes[event.index] = event.outcome
        return [outcomes[index] for index in range(self._texts)]

    async def _during(self, read: Coroutine[Any, Any, list[_Work]]) -> list[_Work]:
        task = asyncio.ensure_future(read)
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

    async def _come(self, seconds: float) -> Event | None:
        return await asyncio.wait_for(self._events.get(), max(0.0, seconds))


@asynccontextmanager
async def exchange(
    service: Service, request: Request, task: TaskEntry, texts: int, pictures: int = 0
) -> AsyncIterator[Exchange]:
    """Reserve a request's places in the queue, before its texts are read. Jobs that outlive the block are cancelled.

    A request with pictures has one text.

    Raises:
        RequestError, QueueFullError, ServerClosedError, TaskTooLargeError: as `Service.admit`.
    """
    service.admit(task, texts, pictures)
    events = Exchange(service, request, task, texts)
    request.state.task = task.name  # for the log, now that it is known to be a name of ours
    watching = asyncio.create_task(events.until_gone())
    try:
        yield events
    finally:
        watching.cancel()
        events.cancel()
        if not events.jobs:
            service.queue.give_up(max(texts, pictures))
        request.state.waited = events.waited


BEARER = {"WWW-Authenticate": "Bearer"}
NEEDS_BEARER = "expected the server's token as 'Authorization: Bearer …'"


async def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


Serving = Annotated[Service, Depends(service_of)]
"""The type of a route's argument that gets the service."""


async def user(request: Request, service: Serving) -> None:
    """Refuse requests without the server's token, if it has one.

    Raises:
        HTTPException: 401.
    """
    if not allowed(request, service.settings):
        raise HTTPException(401, NEEDS_BEARER, BEARER)


def allowed(request: Request, settings: Settings) -> bool:
    """Whether a request brings the token that these settings ask for, or they ask for none."""
    return settings.token is None or _brings(request, settings.token, settings.admin_token)


async def admin(request: Request, service: Serving) -> None:
    """Refuse requests that aren't the admin's.

    Raises:
        HTTPException: 401 or 403.
    """
    settings = service.settings
    if settings.admin_token is None:
        raise HTTPException(403, "there are no admin routes: the server was started without --admin-token-file")
    if not settings.remote_admin and not _is_local(request):
        raise HTTPException(403, "the admin may ask from this machine only: the server runs without --remote-admin")
    if not _brings(request, settings.admin_token):
        raise HTTPException(401, "expected the admin's token as 'Authorization: Bearer …'", BEARER)


def _brings(request: Request, *tokens: str | None) -> bool:
    scheme, _, brought = request.headers.get("authorization", "").partition(" ")
    # Every token is compared, whatever the others gave, so that the time taken tells nothing.
    matches = [hmac.compare_digest(brought.encode(), token.encode()) for token in tokens if token is not None]
    return scheme.lower() == "bearer" and any(matches)


def _is_local(request: Request) -> bool:
    if request.client is None:  # at a Unix socket, where a proxy's word for where a request comes from isn't read
        return "x-forwarded-for" not in request.headers
    try:
        return ip_address(request.client.host).is_loopback
    except ValueError:
        return False
