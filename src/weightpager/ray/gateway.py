"""The way in: HTTP requests go to the server that has their task in memory."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from weightpager.errors import shown
from weightpager.ray.messages import ForwardedRequest, Piece, ResponseStart, Standing
from weightpager.ray.server_replica import ServerReplica
from weightpager.ray.task_router import known_replicas
from weightpager.server.middleware import BODY_SECONDS, BodyLimit
from weightpager.server.routes.errors import answer
from weightpager.server.routes.exchange import BEARER, NEEDS_BEARER, allowed
from weightpager.server.scheduling.settings import Settings
from weightpager.server.schema import ErrorAnswer, ErrorDetail

_STREAM = b"text/event-stream"


class Reply:
    """An answer on its way. A stream is passed on as it comes; anything else once it is whole.

    So a server that dies costs an answer only if it was streaming it.

    Attributes:
        begun: whether the client has something of it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start = ResponseStart(500, ())
        self._held: list[bytes] = []
        self.begun = False

    async def take(self, piece: Piece) -> None:
        """Pass a piece on, or keep it. A standing says that the answer is whole."""
        if isinstance(piece, ResponseStart):
            self._start = piece
        elif isinstance(piece, Standing):
            await self._pass_on(b"".join(self._held), more=False)
        elif self._streams:
            await self._pass_on(piece, more=True)
        else:
            self._held.append(piece)

    async def cut(self, why: ErrorDetail) -> None:
        """End a stream by an event that says why, as a server does whose task fails."""
        event = f"data: {ErrorAnswer(error=why).model_dump_json()}\n\n"
        await self._pass_on(event.encode(), more=False)

    @property
    def _streams(self) -> bool:
        return any(name.lower() == b"content-type" and value.startswith(_STREAM) for name, value in self._start.headers)

    async def _pass_on(self, body: bytes, *, more: bool) -> None:
        if not self.begun:
            self.begun = True
            headers = list(self._start.headers)
            await self._send({"type": "http.response.start", "status": self._start.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


_log = logging.getLogger(__name__)

_GRACE = 2.0
"""Seconds beyond a request's time in which a server may say itself that it is over."""

_TRIES = 4
"""Servers that a request is sent to, one after the other, when they die before they have answered."""

_LOST = (RayActorError, OutOfMemoryError, ObjectLostError, NodeDiedError)
"""A server has died, or its machine with a piece of an answer that was too large to travel with the message.

An `OutOfMemoryError` is that of a server that Ray's memory monitor has killed."""

_ENDED = ErrorDetail(message="the server has ended; ask again", type="server_error", code="server_ended")
_TOO_LONG = ErrorDetail(
    message="the request took longer than the server gives it", type="timeout_error", code="timeout"
)
_ALL_DIED = ErrorDetail(
    message=f"expected a server's answer, found that {_TRIES} servers died; ask again", type="server_error"
)
_UNAVAILABLE = ErrorDetail(message="expected a server, found none that runs or starts; ask again", type="server_error")
_AGAIN = {"Retry-After": "1"}

_FORWARDED = ("/v1/", "/docs", "/openapi.json", "/health", "/ready")


class Gateway:
    """Forwards requests to servers, and tries another one when a server dies.

    A request is sent again as long as nothing of its answer has reached the client: to answer changes nothing in a
    server.
    """

    def __init__(
        self, servers: DeploymentHandle[ServerReplica], settings: Settings, most_body: int | None = None
    ) -> None:
        """``most_body`` is the bytes of the largest body, with pictures; None for what the settings say of others."""
        self._servers = servers.options(stream=True)
        self._settings = settings
        usual = settings.body_bytes
        may = partial(allowed, settings=settings)
        self._limited = BodyLimit(self.forward, most=most_body or usual, seconds=BODY_SECONDS, usual=usual, may=may)

    async def __call__(self, request: Request) -> Response:
        """The response, which Serve runs as an ASGI application."""
        path = request.url.path
        if path == "/replicas" and not allowed(request, self._settings):
            return answer(401, ErrorDetail(message=NEEDS_BEARER, type="authentication_error"), BEARER)
        if path == "/replicas":
            return JSONResponse([asdict(standing) for standing in known_replicas().standings()])
        if not path.startswith(_FORWARDED):
            words = f"expected a route that any server answers, found {path}; /replicas shows them all"
            return answer(404, ErrorDetail(message=words, type="not_found_error"))
        return _Forwarding(self._limited)

    async def forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward a request whose body comes in one piece."""
        request = ForwardedRequest.of(scope, (await receive()).get("body", b""))
        deadline = time.monotonic() + self._settings.timeout + _GRACE
        for _ in range(_TRIES):
            reply = Reply(send)
            try:
                async for piece in self._asked(request, deadline):
                    await reply.take(piece)
                return
            except (*_LOST, DeploymentUnavailableError, asyncio.TimeoutError) as error:
                _log.warning("a request for %s has no answer: %s", shown(request.task), type(error).__name__)
                if reply.begun:
                    await reply.cut(_TOO_LONG if isinstance(error, asyncio.TimeoutError) else _ENDED)
                    return
                if not isinstance(error, _LOST):
                    await _refusal(error)(scope, receive, send)
                    return
        await answer(503, _ALL_DIED, _AGAIN)(scope, receive, send)

    async def _asked(self, request: ForwardedRequest, deadline: float) -> AsyncIterator[Piece]:
        """A server's answer, piece by piece; the standing at its end is taken note of."""
        known_replicas().begun(request)
        pieces: Any = self._servers.answer.remote(request)
        try:
            while True:
                piece = await asyncio.wait_for(anext(pieces), max(0.0, deadline - time.monotonic()))
                if isinstance(piece, Standing):
                    known_replicas().told(piece)
                yield piece
        except StopAsyncIteration:
            return
        except _LOST:
            known_replicas().lost(request)
            raise
        finally:
            known_replicas().ended(request)
            pieces.cancel()


def _refusal(error: Exception) -> Response:
    if isinstance(error, asyncio.TimeoutError):
        return answer(504, _TOO_LONG)
    return answer(503, _UNAVAILABLE, _AGAIN)


class _Forwarding(Response):
    """A request under way. Serve takes a response for an ASGI application, and this is one."""

    def __init__(self, app: BodyLimit) -> None:
        super().__init__()
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
