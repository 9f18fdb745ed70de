"""The process that serves: uvicorn, bounded."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path

import uvicorn

from weightpager.errors import ConfigError
from weightpager.server.app import create_app
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings

_HEADER_BYTES = 32 * 2**10
_CONNECTIONS = 1024
_IDLE_SECONDS = 15
_LAST = 3
"""Seconds in which requests that the grace didn't suffice for are told so, before their connections are cut off."""
_PROXIES = "127.0.0.1,::1"
"""Addresses whose X-Forwarded-For is believed: it decides who asks from this machine."""

_WAYS_OUT = {
    errno.EADDRINUSE: "'weightpager ps' lists your servers, --port 0 takes any free port",
    errno.EACCES: "ports below 1024 are for root: take a higher --port",
}

_log = logging.getLogger(__name__)


def server(service: Service, *, host: str, port: int, uds: Path | None = None) -> uvicorn.Server:
    """A server at a host's port, 0 for any free one, or at a Unix socket in place of both. It closes the service."""
    warn_of_strangers(service.settings, host)
    config = uvicorn.Config(
        create_app(service),
        host=host,
        port=port,
        uds=None if uds is None else str(uds),
        http="h11",  # the only one that bounds the size of headers
        h11_max_incomplete_event_size=_HEADER_BYTES,
        ws="none",
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=math.ceil(service.settings.grace) + _LAST,
        forwarded_allow_ips=_PROXIES,  # unstated, it would be whatever FORWARDED_ALLOW_IPS says
        server_header=False,
        access_log=False,
        log_config=None,
    )
    return _GracefulServer(config, service)


class _GracefulServer(uvicorn.Server):
    """Ends requests itself when their grace is over: uvicorn would cut off connections without a word."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self._service.settings.grace, self._service.end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()


def url_of(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def warn_of_strangers(settings: Settings, host: str) -> None:
    """Log a warning if other machines reach a server that asks for no token."""
    if settings.token is None and not is_loopback(host):
        _log.warning("anybody who reaches %s may use this server: there is no --token-file", host)


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve at. Raises a `ConfigError` if it can't be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        advice = _WAYS_OUT.get(error.errno or 0, "--host takes an address of this machine, or 0.0.0.0 for all of them")
        raise ConfigError(
            f"expected a free port at {host}:{port}, found: {error.strerror or error}; {advice}"
        ) from error
    except OverflowError as error:
        raise ConfigError(f"expected a port from 0 to 65535, got {port}") from error


@contextmanager
def listen_at(path: Path) -> Iterator[socket.socket]:
    """A Unix socket to serve at, which is removed after the block. Who may connect is up to the process's umask.

    A socket that a dead server has left gives way.

    Raises:
        ConfigError: it can't be had.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        try:
            _remove_abandoned(path)
            listening.bind(str(path))
            listening.listen(_CONNECTIONS)
        except OSError as error:
            raise ConfigError(
                f"expected a path for a socket, found {path}: {error.strerror or error}; --uds takes one that nothing "
                "has yet, in a folder that this user may write to"
            ) from error
        try:
            yield listening
        finally:
            path.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Remove a socket that nobody listens at. All else stays, and `bind` refuses the path."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            try:
                asking.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)


@contextmanager
def told_to_end() -> Iterator[None]:
    """Turn SIGTERM into an exception that ends the process, so that the blocks around this one tidy up.

    A server that has shut down because of it raises the signal once more, which by default ends the process there.
    """

    def end(*_: object) -> None:
        raise SystemExit

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def cut_off(service: Service) -> Iterator[None]:
    """End the process at the end of the block if the worker is still computing, as a process can't end around that.

    Exit code 1, after what was written has been flushed. `Service.close` has given the worker its last seconds.
    """
    try:
        yield
    finally:
        if service.worker.alive:
            _log.error("the worker is still computing after its last seconds, and is cut off")
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):  # nobody reads it any more
                    stream.flush()
            os._exit(1)


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
