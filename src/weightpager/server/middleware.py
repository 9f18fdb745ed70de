"""What every request passes: a limit of its body, and the log."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightpager.logs import logging_by
from weightpager.server.metrics import Metrics
from weightpager.server.routes.errors import GONE, answer, describe
from weightpager.server.routes.exchange import BEARER, NEEDS_BEARER
from weightpager.server.schema import ErrorDetail

BODY_SECONDS = 30.0
"""Seconds that a body may take to arrive."""

LARGE_TOGETHER = 2
"""Large bodies, with pictures, that are there at a time: they stay until they are answered."""

_WITH_PICTURES = frozenset({"/v1/chat/completions", "/v1/completions"})
"""Routes whose bodies may hold pictures."""

_MARKS = (b"[", b"{", b",")
"""Every value in a list or an object of JSON takes one of these. Base64 has none of them."""


class _TooLargeError(Exception):
    """Says how many bytes were expected."""


class _NoPicturesError(Exception):
    """Says how many marks were expected."""


class _NoTokenError(Exception):
    pass


class _NoRoomError(Exception):
    pass


@dataclass
class _Share:
    """What a body takes of the bytes that large ones may take together."""

    bytes: int = 0


class BodyLimit:
    """ASGI middleware in front of everything that reads a body. For the event loop only.

    A body beyond the usual size is one with pictures: on the routes that read them, of somebody who may use the server.
    It is mostly base64, which costs little to read. Any other JSON of that size would keep the event loop for seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        most: int,
        seconds: float,
        usual: int | None = None,
        together: int | None = None,
        may: Callable[[Request], bool] = lambda _: True,
    ) -> None:
        """Nothing is read yet.

        Args:
            app: behind this one.
            most: bytes of a body with pictures.
            seconds: within which it must come.
            usual: bytes that any body may have at any time; all of ``most`` if None.
            together: bytes beyond that, of all bodies that are being read or answered; those of `LARGE_TOGETHER` of the
                largest if None.
            may: whether a request brings the token that more than ``usual`` is read for.
        """
        self._app = app
        self._most = most
        self._seconds = seconds
        self._usual = most if usual is None else usual
        self._left = LARGE_TOGETHER * (most - self._usual) if together is None else together
        self._may = may

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = _Share()
        try:
            await self._answer(share, scope, receive, send)
        finally:
            self._left += share.bytes

    async def _answer(self, share: _Share, scope: Scope, receive: Receive, send: Send) -> None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        try:
            self._check_length(int(declared) if declared.isdigit() else 0, scope)
            body = await asyncio.wait_for(self._read(share, scope, receive), self._seconds)
        except _TooLargeError as error:
            more = "found more; the server's --max-body raises that"
            await _refuse(413, f"expected a body of at most {error} bytes, {more}")(scope, receive, send)
        except _NoPicturesError as error:
            words = (
                f"expected a body of more than {self._usual} bytes to be pictures in base64, with at most {error} of "
                f"the characters {' '.join(mark.decode() for mark in _MARKS)} in it, found more"
            )
            await _refuse(413, words)(scope, receive, send)
        except _NoTokenError:
            refused = ErrorDetail(message=NEEDS_BEARER, type="authentication_error")
            await answer(401, refused, {"Connection": "close", **BEARER})(scope, receive, send)
        except _NoRoomError:
            await answer(429, _NO_ROOM, {"Connection": "close", "Retry-After": "1"})(scope, receive, send)
        except asyncio.TimeoutError:
            words = f"expected a body of at most {self._most_of(scope)} bytes, found no end in {self._seconds} seconds"
            await _refuse(408, words)(scope, receive, send)
        else:
            await self._app(scope, _replay(body, receive), send)

    def _check_length(self, length: int, scope: Scope) -> None:
        """Refuse a body of so many bytes, as far as the request's head tells."""
        if length <= self._usual:
            return
        if length > (most := self._most_of(scope)):
            raise _TooLargeError(most)
        if not self._may(Request(scope)):
            raise _NoTokenError

    def _most_of(self, scope: Scope) -> int:
        """Bytes of a request's body, at most."""
        return self._most if scope["method"] == "POST" and scope["path"] in _WITH_PICTURES else self._usual

    async def _read(self, share: _Share, scope: Scope, receive: Receive) -> bytes:
        parts: list[bytes] = []
        length = marks = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            length += len(parts[-1])
            marks += sum(map(parts[-1].count, _MARKS))
            self._check_length(length, scope)
            if length > self._usual and marks > self._usual // 2:  # as many values as the usual size has room for
                raise _NoPicturesError(self._usual // 2)
            more = max(0, length - self._usual) - share.bytes
            if more > self._left:
                raise _NoRoomError
            share.bytes += more
            self._left -= more
            if not message.get("more_body", False):
                return b"".join(parts)


def _refuse(status: int, words: str) -> Response:
    return answer(status, ErrorDetail(message=words, type="invalid_request_error"), {"Connection": "close"})


_NO_ROOM = ErrorDetail(
    message="large bodies of other requests are being read or answered; ask again later",
    type="rate_limit_error",
    code="queue_full",
)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that has been read, then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return first.pop() if first else await receive()

    return replayed


_log = logging.getLogger("weightpager.server.requests")

_PROBES = ("/health", "/ready", "/metrics")
"""Routes that monitors ask every few seconds: answers that are well are logged as debug only."""


class RequestLog:
    """ASGI middleware around everything else; gives every response an ``X-Request-Id``, and says how long it waited."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = time.monotonic(), 0
        request = secrets.token_hex(8)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [(b"x-request-id", request.encode())]
                waited = _waited(scope)
                if waited is not None:
                    headers.append((b"server-timing", f"queue;dur={waited * 1e3:.1f}".encode()))
                message["headers"] = [*message.get("headers", []), *headers]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if not status:  # the framework would answer too, but outside of this
                await answer(*describe(error))(scope, receive, noting)
            raise
        finally:
            self._note(scope, request, status or GONE, time.monotonic() - start)

    def _note(self, scope: Scope, request: str, status: int, seconds: float) -> None:
        # The route's pattern, not the path: paths are whatever clients make of them.
        route = str(getattr(scope.get("route"), "path", "other"))
        task = str(scope.get("state", {}).get("task", ""))
        self._metrics.answered(route, task, status, seconds)
        method, waited = scope["method"], _waited(scope)
        facts = {"request": request, "method": method, "route": route, "task": task, "status": status}
        facts |= {"seconds": round(seconds, 6), "waited": waited}
        level = logging.DEBUG if route in _PROBES and status < 400 else logging.INFO
        _log.log(level, "%s %s %d", method, route, status, extra={"facts": facts})


def _waited(scope: Scope) -> float | None:
    """Seconds that a request's texts have waited for their turn; None while that isn't known, or they never began."""
    found: float | None = scope.get("state", {}).get("waited")
    return found


_OWN = ("weightpager", "uvicorn")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}`` and whatever facts a line carries."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


@contextmanager
def logging_to_stderr(level: str, *, as_json: bool) -> Iterator[None]:
    """Send our loggers' lines and uvicorn's to standard error while the block runs. No other logger is touched."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    with ExitStack() as undoing:
        for name in _OWN:
            undoing.enter_context(logging_by(handler, name, level.upper()))
        yield
