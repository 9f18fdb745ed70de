"""``top``: what a server does, shown live in a terminal."""

from __future__ import annotations

import http.client
import re
import socket
import sys
import time
from typing import Annotated, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPHandler, ProxyHandler, Request, build_opener

import typer
from pydantic import ValidationError
from rich.live import Live

from weightpager.cli import output
from weightpager.cli.options import Json, TokenFile, bounded
from weightpager.cli.serving.top_view import view
from weightpager.errors import ConfigError, WeightpagerError
from weightpager.server.schema.status import Status

_MOST_BYTES = 64 * 2**20
_MOST_SHOWN = 80
_UNIX = "unix:"
_PRINTABLE = re.compile(r"[!-~]+")


def top(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="Address of the server.")] = "http://127.0.0.1:8000",
    interval: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", callback=bounded, help="Time between two looks.")
    ] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """Watch a server: pages in memory, switches, who waits. Loads nothing; Ctrl-C ends it.

    A server that listens at a Unix socket is `unix:/run/weightpager.sock`. In a pipe each look follows the one before.

    Example: `weightpager top http://127.0.0.1:8000`
    """
    from weightpager.server.scheduling.settings import read_token

    token = read_token(token_file)
    status = read_status(url, token)
    if json:
        output.print_json(status)
    elif once:
        _print(status)
    elif output.console().is_terminal:
        with Live(console=output.console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(view(status, *output.console().size), refresh=True)
                time.sleep(interval)
                status = read_status(url, token)
    else:
        while True:
            _print(status)
            sys.stdout.flush()  # whoever reads the pipe sees it now
            time.sleep(interval)
            status = read_status(url, token)


def _print(status: Status) -> None:
    output.console().print(view(status, output.console().width))


def read_status(url: str, token: str | None = None, timeout: float = 10.0) -> Status:
    """A server's state, if it answers within ``timeout`` seconds.

    Raises:
        ConfigError: the URL isn't one of HTTP.
        WeightpagerError: no weightpager server answers there, or it asks for a token.
    """
    content = _fetch(url, token, timeout)
    try:
        return Status.model_validate_json(content)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        found = ": ".join([*map(str, detail["loc"][:1]), detail["msg"]])
        raise WeightpagerError(f"expected a weightpager server at {url}, found another answer: {found}") from error


def _fetch(url: str, token: str | None, timeout: float) -> bytes:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    if url.startswith(_UNIX):
        base, opener = "http://localhost", build_opener(ProxyHandler({}), _AtSocket(url.removeprefix(_UNIX)))
    else:
        base, opener = _checked(url), build_opener()
    request = Request(f"{base.rstrip('/')}/status", headers=headers)  # noqa: S310 - checked
    try:
        with opener.open(request, timeout=timeout) as answer:
            content: bytes = answer.read(_MOST_BYTES)
            return content
    except HTTPError as error:
        error.close()
        hint = "; it asks for --token-file" if error.code == 401 else ""
        raise WeightpagerError(f"expected a weightpager server at {url}, found status {error.code}{hint}") from error
    except http.client.HTTPException as error:
        found = repr(str(error).strip())[:_MOST_SHOWN]
        raise WeightpagerError(f"expected a weightpager server at {url}, found no HTTP: {found}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise WeightpagerError(
            f"expected a weightpager server at {url}, found none: {getattr(reason, 'strerror', None) or reason}; "
            "'weightpager ps' lists those that run, 'weightpager serve' starts one"
        ) from error


class _AtSocket(HTTPHandler):
    """Asks the server that listens at a Unix socket, whatever host a URL names."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: Request) -> http.client.HTTPResponse:
        def connection(host: str, **settings: Any) -> _UnixConnection:
            return _UnixConnection(self._path, host, **settings)

        return self.do_open(connection, req)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, host: str, timeout: float) -> None:
        super().__init__(host, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _checked(url: str) -> str:
    """The URL.

    Raises:
        ConfigError: it isn't one of HTTP.
    """
    try:
        parts = urlsplit(url)
        well = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and _PRINTABLE.fullmatch(url)
    except ValueError:  # the address or the port isn't one
        well = False
    if not well:
        raise ConfigError(f"expected the URL of a server, such as http://127.0.0.1:8000, found {url!r}")
    return url
