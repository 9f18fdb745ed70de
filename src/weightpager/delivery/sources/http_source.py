"""A repository behind HTTP. A server may hang, lie about ranges, send less, more or other bytes, or know no ranges."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from weightpager.delivery.sources.rate_limit import RateLimit
from weightpager.delivery.sources.source import MissingError, Stream, TransferError
from weightpager.errors import ConfigError, DeliveryError

_PIECE = 1 << 18
_REDIRECTS = 5

SECONDS = 30.0
"""Without a byte for so long, or fewer than `_LEAST` a second on average after that, a server counts as hanging."""

_LEAST = 1024


class HttpSource:
    """Implements `Source`. Several threads may read at once."""

    def __init__(self, url: str, limit: RateLimit, connections: int, *, redirects: bool = False) -> None:
        """Nothing is asked yet.

        Args:
            url: of the repository.
            limit: of bytes a second.
            connections: at once.
            redirects: whether redirects to other hosts are followed, too.
        """
        self.place = url.rstrip("/")
        self.whole_files = False
        self.received = 0
        self._limit = limit
        self._seconds = SECONDS
        self._redirects = redirects
        self._pool = _pool(url, connections, SECONDS)

    @contextmanager
    def open(self, path: str, start: int = 0, end: int | None = None) -> Iterator[Stream]:
        url = f"{self.place}/{path}"
        headers = {"Accept-Encoding": "identity"} | ({} if end is None else {"Range": f"bytes={start}-{end - 1}"})
        try:
            response = self._answer(url, headers)
        except (HTTPError, OSError, ValueError) as error:  # of an address that a server names, too
            raise TransferError(f"{url}: expected an answer, found none: {_reason(error)}") from error
        whole = False
        try:
            first, count = self._promised(response, url, start, end)
            yield Stream(first, self._pieces(response, url, count))
            whole = True
        finally:
            if whole and response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()  # what it would still send is nothing that anybody waits for

    def _answer(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """What a server answers, after redirects.

        Raises:
            DeliveryError: one leads to another host.
        """
        at = url
        for _ in range(_REDIRECTS + 1):
            response = self._pool.request(
                "GET", at, headers=headers, preload_content=False, decode_content=False, redirect=False
            )
            location = response.get_redirect_location()
            if not location:
                return response
            response.close()
            there = urljoin(at, location)
            if not (self._redirects or _same_host(at, there)):
                raise DeliveryError(
                    f"{url}: expected a file, found a redirect to {_host(there)[:200]!r}: name that host's address "
                    "instead, or allow redirects to other hosts (--redirects)"
                )
            at = there
        raise TransferError(f"{url}: expected at most {_REDIRECTS} redirects, found more")

    def _promised(self, response: BaseHTTPResponse, url: str, start: int, end: int | None) -> tuple[int, int | None]:
        """Where the answer begins, and how many bytes are wanted of it; None for all."""
        if response.status in (403, 404, 410):  # stores that don't let others list answer 403
            raise MissingError(f"{url}: expected a file, found none: HTTP {response.status}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise TransferError(f"{url}: expected bytes as they are, found them encoded; switch that off in the server")
        if end is None:
            if response.status != 200:
                raise TransferError(f"{url}: expected HTTP 200, found {response.status}")
            return 0, None
        if response.status == 200:
            self.whole_files = True
            return 0, None
        if response.status != 206:
            raise TransferError(f"{url}: expected HTTP 206 or 200, found {response.status}")
        stated = response.headers.get("Content-Range", "")
        if re.fullmatch(rf"bytes {start}-{end - 1}/(\d+|\*)", stated) is None:
            raise TransferError(f"{url}: expected bytes {start}-{end - 1}, found a part that is {stated[:80]!r}")
        return start, end - start

    def _pieces(self, response: BaseHTTPResponse, url: str, wanted: int | None) -> Iterator[bytes]:
        count, waited = 0, 0.0
        while True:
            asked = time.monotonic()
            try:
                piece = response.read1(_PIECE)
            except (HTTPError, OSError) as error:
                raise TransferError(f"{url}: expected more than {count} bytes: {_reason(error)}") from error
            waited += time.monotonic() - asked
            if not piece:
                break
            count += len(piece)
            if wanted is not None and count > wanted:
                raise TransferError(f"{url}: expected {wanted} bytes, found more")
            if waited > self._seconds and count < _LEAST * waited:
                raise TransferError(f"{url}: expected more than {_LEAST} bytes a second, found {count / waited:.0f}")
            self.received += len(piece)
            self._limit.wait_for(len(piece))
            yield piece
        if wanted is None and response.length_remaining:
            raise TransferError(f"{url}: expected {response.length_remaining} more bytes, found the end after {count}")
        if wanted is not None and count < wanted:
            raise TransferError(f"{url}: expected {wanted} bytes, found the end after {count}")

    def close(self) -> None:
        self._pool.clear()


def _pool(url: str, connections: int, seconds: float) -> urllib3.PoolManager:
    wrong = ConfigError(f"url: expected http://, https:// or a directory, found {url[:200]!r}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise wrong from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    retries = Retry(total=None, connect=0, read=0, other=0, status=0, redirect=False)
    timeout = urllib3.Timeout(connect=seconds, read=seconds)
    proxy = getproxies().get(parts.scheme)
    if not proxy or proxy_bypass(parts.hostname):
        return urllib3.PoolManager(maxsize=connections + 2, retries=retries, timeout=timeout)
    try:
        stated = proxy if "://" in proxy else f"http://{proxy}"  # as curl reads it
        return urllib3.ProxyManager(stated, maxsize=connections + 2, retries=retries, timeout=timeout)
    except HTTPError as error:  # its text may have a password
        expected = f"{parts.scheme}_proxy: expected an HTTP proxy such as http://proxy:3128"
        raise ConfigError(f"{expected}, found another text in the environment") from error


def _same_host(url: str, other: str) -> bool:
    """Whether a redirect stays with its server; it may go over from http to https."""
    before, after = urlsplit(url), urlsplit(other)
    kept = after.scheme == before.scheme or (before.scheme, after.scheme) == ("http", "https")
    return kept and (before.hostname, before.port) == (after.hostname, after.port)


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _reason(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, BaseException) else error)[:200]
