"""One line and a few counts per request: what was asked and how it went, never what was said."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from weightpager.server.routes.errors import GONE, answer, describe
from weightpager.server.statistics.metrics import Metrics

_log = logging.getLogger("weightpager.server.requests")

_PROBES = ("/health", "/ready", "/metrics")
"""Routes that monitors ask every few seconds: answers that are well are logged as debug only."""


class RequestLog:
    """ASGI middleware around everything else; gives every response an ``X-Request-Id``, and says how long it waited."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and take note of it."""
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
