"""Pictures that requests name by their address, from hosts that the operator allows, such as a camera."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from weightpager.errors import ConfigError, ImageError, QueueFullError, shown
from weightpager.machine.packages import check_installed

_PORTS = {"http": 80, "https": 443}
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?)(?::(\d{1,5}))?", re.IGNORECASE)

_MOST_OF_AN_ADDRESS = 2048
_AT_ONCE = 4
_PIECE = 1 << 16

SECONDS = 10.0
"""Within which a picture must have come."""


def is_address(url: str) -> bool:
    return _ADDRESS.match(url) is not None


@dataclass(frozen=True)
class AllowedHost:
    """A host whose pictures are fetched.

    Attributes:
        name: lower case; an IPv6 address in brackets.
        port: None for the usual one of http and of https.
    """

    name: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> AllowedHost:
        """Read ``HOST`` or ``HOST:PORT``.

        Raises:
            ConfigError: it is something else, such as an address with a path.
        """
        found = _HOST.fullmatch(text)
        if found is None or (found[3] and not 0 < int(found[3]) < 2**16):
            raise ConfigError(f"--picture-host: expected HOST or HOST:PORT, found {shown(text)}")
        return cls(found[1].lower(), int(found[3]) if found[3] else None)

    def __str__(self) -> str:
        return self.name if self.port is None else f"{self.name}:{self.port}"


class PictureHosts:
    """Fetches pictures in threads of its own. Redirects aren't followed, and nothing else is sent than the address."""

    def __init__(self, hosts: Sequence[AllowedHost], *, most_bytes: int, most: int) -> None:
        """Nothing is fetched yet.

        Args:
            hosts: those that are allowed; at least one.
            most_bytes: of a picture's file.
            most: pictures that may be waited for at a time.

        Raises:
            ConfigError: urllib3 isn't installed.
        """
        check_installed("urllib3", "serve", "to fetch pictures")
        import urllib3

        self._hosts, self._most_bytes, self._most, self._waited = tuple(hosts), most_bytes, most, 0
        self._pool = urllib3.PoolManager(maxsize=_AT_ONCE, retries=False, timeout=urllib3.Timeout(SECONDS / 2))
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="weightpager-fetching")

    async def fetch(self, urls: Sequence[str]) -> list[bytes]:
        """The files at some addresses, in their order.

        Raises:
            ImageError: a host isn't allowed, or gives no file in time, or one that is too large.
            QueueFullError: too many are waited for already.
        """
        for url in urls:
            self._check(url)
        if self._waited + len(urls) > self._most:
            raise QueueFullError(f"expected at most {self._most} pictures that are fetched, found more")
        self._waited += len(urls)
        try:
            loop = asyncio.get_running_loop()
            return await asyncio.gather(*(loop.run_in_executor(self._threads, self._get, url) for url in urls))
        finally:
            self._waited -= len(urls)

    def _check(self, url: str) -> None:
        from urllib3.exceptions import LocationParseError
        from urllib3.util import parse_url

        if len(url) > _MOST_OF_AN_ADDRESS:
            raise ImageError(f"expected an address of at most {_MOST_OF_AN_ADDRESS} characters, found {len(url)}")
        try:
            parts = parse_url(url)
        except LocationParseError as error:
            raise ImageError(f"expected an address of a picture, found {shown(url)}") from error
        if parts.auth is not None:
            raise ImageError("expected an address without a user's name, found one with it")
        usual = _PORTS[str(parts.scheme)]
        if not any(parts.host == each.name and (parts.port or usual) == (each.port or usual) for each in self._hosts):
            allowed = ", ".join(map(str, self._hosts))
            raise ImageError(
                f"expected a picture from a host that --picture-host allows ({allowed}), found {shown(parts.netloc)}"
            )

    def _get(self, url: str) -> bytes:
        from urllib3.exceptions import HTTPError

        until, content = time.monotonic() + SECONDS, bytearray()
        headers = {"Accept": "image/*", "Accept-Encoding": "identity"}
        try:
            response = self._pool.request("GET", url, headers=headers, preload_content=False, redirect=False)
        except (HTTPError, OSError, ValueError) as error:
            raise ImageError(f"expected a picture at {shown(url)}, found no answer: {_reason(error)}") from error
        try:
            if response.status != 200:
                raise ImageError(f"expected a picture at {shown(url)}, found HTTP {response.status}")
            while piece := response.read1(_PIECE):
                content += piece
                if len(content) > self._most_bytes:
                    raise ImageError(f"expected a picture of at most {self._most_bytes} bytes, found more")
                if time.monotonic() > until:
                    raise ImageError(f"expected a picture within {SECONDS:g} seconds, found {len(content)} bytes of it")
            if response.length_remaining:
                raise ImageError(f"expected {response.length_remaining} more bytes at {shown(url)}, found the end")
        except (HTTPError, OSError, ValueError) as error:
            raise ImageError(f"expected a whole picture at {shown(url)}: {_reason(error)}") from error
        finally:
            response.close()
        return bytes(content)

    def close(self) -> None:
        """Begin nothing any more; what is being fetched ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, BaseException) else error)[:200]
