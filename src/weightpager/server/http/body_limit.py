"""Request bodies: no larger, and no slower, than the server is ready to take."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightpager.server.routes.errors import answer
from weightpager.server.schema.common import ErrorDetail

BODY_SECONDS = 30.0
"""Seconds that a body may take to arrive."""


class _TooLargeError(Exception):
    pass


class BodyLimit:
    """ASGI middleware in front of everything that reads a body."""

    def __init__(self, app: ASGIApp, most: int, seconds: float) -> None:
        """``most`` bytes of a body, which must come within so many seconds."""
        self._app = app
        self._most = most
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 408 or 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._most:
            await self._refuse(413, scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(receive), self._seconds)
        except _TooLargeError:
            await self._refuse(413, scope, receive, send)
        except asyncio.TimeoutError:
            await self._refuse(408, scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        length = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            if length > self._most:
                raise _TooLargeError
            if not message.get("more_body", False):
                return b"".join(parts)

    async def _refuse(self, status: int, scope: Scope, receive: Receive, send: Send) -> None:
        found = (
            "more; the server's --max-body raises that" if status == 413 else f"no end after {self._seconds} seconds"
        )
        words = f"expected a body of at most {self._most} bytes, found {found}"
        response = answer(status, ErrorDetail(message=words, type="invalid_request_error"), {"Connection": "close"})
        await response(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that has been read, then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed
