"""What goes between the gateway and the servers of an application on Ray Serve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from uuid import uuid4

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class ForwardedRequest:
    """An HTTP request on its way to a server.

    Attributes:
        task: the task that it asks for; empty if it names none.
    """

    key: str
    task: str
    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes

    @classmethod
    def of(cls, scope: Mapping[str, object], body: bytes) -> ForwardedRequest:
        headers = scope["headers"]
        assert isinstance(headers, list | tuple)
        return cls(
            uuid4().hex,
            task_of(body),
            str(scope["method"]),
            str(scope["path"]),
            bytes(scope["query_string"]),  # type: ignore[call-overload]
            tuple((bytes(name), bytes(value)) for name, value in headers),
            body,
        )

    def scope(self) -> dict[str, object]:
        """The ASGI scope from which a server's application reads it."""
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": list(self.headers),
            "client": None,
            "server": None,
            "state": {},
        }


def task_of(body: bytes) -> str:
    """The task that a request's body asks for as its ``model``; empty if it names none. A server judges the body."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    task = value.get("model") if isinstance(value, dict) else None
    return task if isinstance(task, str) else ""


@dataclass(frozen=True)
class Standing:
    """How a server stands: what a router needs, and what an operator looks at.

    Attributes:
        sequence: a number that grows with every standing of a replica.
        lacks: bytes that memory lacks of each task of its bundle, also 0.
        free: bytes of memory for pages that nothing is in.
        request_bytes: bytes that it loads while a request computes, in the mean; 0 until it knows.
        bytes_read: bytes read from storage since it started.
        stuck: whether one step has kept it busy for too long. Servers of an older version don't say.
    """

    replica: str
    pid: int
    sequence: int
    lacks: Mapping[str, int]
    free: int
    request_bytes: float
    current: str | None
    waiting: int
    bytes_read: int
    switches: int
    stuck: bool = False


@dataclass(frozen=True)
class ResponseStart:
    """The head of a server's answer; pieces of the body follow as bytes, and a `Standing` at the end."""

    status: int
    headers: Headers


Piece = ResponseStart | bytes | Standing
