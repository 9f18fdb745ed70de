"""Where a repository is read from: a directory or HTTP, at a bounded rate."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from urllib3.util.retry import Retry

from weightpager.bundle.files.regular_file import open_regular
from weightpager.delivery.version_file import METADATA
from weightpager.errors import ConfigError, DeliveryError
from weightpager.machine.paths import has_directory


class TransferError(DeliveryError):
    """Bytes didn't come as they should have; another try may do."""


class MissingError(DeliveryError):
    """The repository has no such file."""


@dataclass
class FileStream:
    """Bytes of a file as they come, in pieces of any length.

    Attributes:
        start: offset of the first byte; 0 if the source gives the whole file whatever was asked for.
    """

    start: int
    pieces: Iterator[bytes]


class Source(Protocol):
    """Files of a repository by their paths in it. Every byte may be wrong, so that readers compare hashes.

    Attributes:
        place: where it is, as messages name it.
        whole_files: whether it has answered a request for a part with the whole file.
        received: number of bytes that have come, of whatever they were.
    """

    place: str
    whole_files: bool
    received: int

    def open(self, path: str, start: int = 0, end: int | None = None) -> AbstractContextManager[FileStream]:
        """A file, or its bytes from ``start`` to ``end``.

        Raises:
            MissingError: there is none.
            TransferError: it can't be read, ended early, or isn't the part that was asked for.
        """

    def close(self) -> None: ...


def read_at_most(source: Source, path: str, most: int) -> bytes:
    """Read a small file whole. Errors are those of `Source.open`; more than ``most`` bytes are a `TransferError`."""
    content = bytearray()
    with source.open(path) as stream:
        for piece in stream.pieces:
            content += piece
            if len(content) > most:
                raise TransferError(f"{source.place}: {path}: expected at most {most} bytes, found more")
    return bytes(content)


_BEHIND = 0.25
"""Seconds that may be made up for. A sleep that was a little too long would else cost a part of the rate for good."""


class RateLimit:
    """Lets those who have received bytes wait until they were due: who reads late makes a server send late."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self._rate = bytes_per_second
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait_for(self, count: int) -> None:
        """Wait until so many bytes were due."""
        if self._rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BEHIND) + count / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)


_PIECE = 1 << 18


class DirectorySource:
    """Implements `Source`."""

    whole_files = False

    def __init__(self, root: Path, limit: RateLimit) -> None:
        self.place = str(root)
        self.received = 0
        self._root = root
        self._limit = limit

    @contextmanager
    def open(self, path: str, start: int = 0, end: int | None = None) -> Iterator[FileStream]:
        with self._opened(path) as file:
            file.seek(start)
            yield FileStream(start, self._pieces(file, path, None if end is None else end - start))

    def _opened(self, path: str) -> BinaryIO:
        try:
            return open_regular(self._root / path)
        except FileNotFoundError as error:
            raise MissingError(f"{self.place}: expected the file {path}, found none") from error
        except OSError as error:
            raise self._unreadable(path, error) from error

    def _pieces(self, file: BinaryIO, path: str, left: int | None) -> Iterator[bytes]:
        while left is None or left > 0:
            try:
                piece = file.read(_PIECE if left is None else min(left, _PIECE))
            except OSError as error:
                raise self._unreadable(path, error) from error
            if not piece:
                if left is not None:
                    raise TransferError(f"{self.place}: {path}: expected {left} more bytes, found its end")
                return
            self._limit.wait_for(len(piece))
            self.received += len(piece)
            if left is not None:
                left -= len(piece)
            yield piece

    def _unreadable(self, path: str, error: OSError) -> TransferError:
        return TransferError(f"{self.place}: {path}: cannot be read: {error.strerror or error}")

    def close(self) -> None: ...


_REDIRECTS = 5

SECONDS = 30.0
"""Without a byte for so long, or fewer than `_LEAST` a second on average after that, a server counts as hanging."""

_LEAST = 1024


class HttpSource:
    """Implements `Source`. Several threads may read at once."""

    def __init__(self, url: str, limit: RateLimit, connections: int, *, redirects: bool = False) -> None:
        """Nothing is asked yet; ``redirects`` says whether redirects to other hosts are followed, too."""
        self.place = url.rstrip("/")
        self.whole_files = False
        self.received = 0
        self._limit = limit
        self._seconds = SECONDS
        self._redirects = redirects
        self._pool = _pool(url, connections, SECONDS)

    @contextmanager
    def open(self, path: str, start: int = 0, end: int | None = None) -> Iterator[FileStream]:
        url = f"{self.place}/{path}"
        headers = {"Accept-Encoding": "identity"} | ({} if end is None else {"Range": f"bytes={start}-{end - 1}"})
        try:
            response = self._answer(url, headers)
        except (HTTPError, OSError, ValueError) as error:  # of an address that a server names, too
            raise TransferError(f"{url}: expected an answer, found none: {_reason(error)}") from error
        whole = False
        try:
            first, count = self._promised(response, url, start, end)
            yield FileStream(first, self._pieces(response, url, count))
            whole = True
        finally:
            if whole and response.length_remaining == 0:
                response.release_conn()
            else:
                response.close()  # what it would still send is nothing that anybody waits for

    def _answer(self, url: str, headers: Mapping[str, str]) -> BaseHTTPResponse:
        """What a server answers, after redirects. Raises `DeliveryError` if one leads to another host."""
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


def open_source(
    place: str, bytes_per_second: float | None = None, connections: int = 4, *, redirects: bool = False
) -> Source:
    """Open a repository, by its URL or directory.

    ``redirects`` says whether a server may redirect to other hosts. What comes from there is checked as all else.

    Raises:
        ConfigError: it is neither.
    """
    limit = RateLimit(bytes_per_second)
    if "://" in place:
        return HttpSource(place, limit, connections, redirects=redirects)
    if not has_directory(Path(place) / METADATA):
        raise ConfigError(f"expected the URL or directory of a repository, found no {METADATA}/ in {place!r}")
    return DirectorySource(Path(place), limit)
