"""A repository behind a real HTTP server, which may misbehave as real ones do, and devices that pull from it."""

from __future__ import annotations

import random
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from weightpager.bundle.garbage import collect
from weightpager.delivery.publishing import repository
from weightpager.delivery.publishing.publish import Published, publish
from weightpager.delivery.pulling.pull import Check, Pulled, Wish, pull
from weightpager.delivery.sources import open_source

NAME = "assistant"


@dataclass(frozen=True)
class Place:
    """A repository and its keys."""

    root: Path
    keys: Path

    @classmethod
    def make(cls, folder: Path) -> Place:
        folder.mkdir(exist_ok=True)
        place = cls(folder / "repository", folder / "repository.keys")
        repository.create(place.root, place.keys, root_keys=3, threshold=2)
        return place

    @property
    def trust(self) -> bytes:
        return (self.root / "metadata" / "1.root.json").read_bytes()

    def publish(self, bundle: Path, channel: str = "stable", version: str | None = None) -> Published:
        return publish(bundle, self.root, self.keys, NAME, channel, version)

    def publish_in_two_versions(self, bundle: Path, dropped: str) -> None:
        """First without a task, then all of it."""
        with TemporaryDirectory() as folder:
            smaller = Path(shutil.copytree(bundle, Path(folder) / "smaller.bundle"))
            collect(smaller, drop=[dropped])
            self.publish(smaller)
        self.publish(bundle)


@dataclass(frozen=True)
class Device:
    """A directory of bundles."""

    into: Path
    trust: bytes | None = None

    @property
    def bundle(self) -> Path:
        return self.into / f"{NAME}.bundle"

    def pull(
        self,
        place: str | Path,
        *,
        again: bool = False,
        channel: str = "stable",
        check: Check | None = None,
        redirects: bool = False,
        **options: Any,
    ) -> Pulled:
        source = open_source(str(place), connections=3, redirects=redirects)
        trust = None if (self.into / ".weightpager" / NAME / "state.json").exists() else self.trust
        try:
            return pull(source, self.into, Wish(NAME, channel, root=trust, again=again), check=check, **options)
        finally:
            source.close()


@dataclass(frozen=True)
class Fleet:
    """A repository whose channel has ``new``; a device that has ``old``."""

    place: Place
    old: Path
    new: Path
    device: Device

    def copied(self, folder: Path) -> Fleet:
        """All of it that a test may change."""
        shutil.copytree(self.place.root.parent, folder / "fleet", symlinks=True)
        root = folder / "fleet" / "repository"
        return Fleet(
            Place(root, root.with_name("repository.keys")), self.old, self.new, Device(folder / "fleet/device")
        )


@dataclass
class Manners:
    """How a server behaves.

    Attributes:
        way: what it does to requests for files whose paths begin with ``where`` and end with ``only``.
        elsewhere: the address that the way "moved" redirects to.
        cuts: one of so many answers is cut off; 0 for none.
        asked: ranges and paths that were asked for.
        sent: bytes of bodies that were sent.
        was_cut: answers that were cut off.
    """

    way: str = "honest"
    where: str = "/packs/"
    only: str = ""
    elsewhere: str = ""
    cuts: int = 0
    asked: list[str] = field(default_factory=list)
    sent: int = 0
    was_cut: int = 0
    drawn: random.Random = field(default_factory=lambda: random.Random(7))


WAYS = (
    "lies", "other part", "flips", "swaps", "less", "short", "more", "circle", "hangs", "drips", "error", "encoded",
    "empty", "nonsense",
)  # fmt: skip
"""What no pull may come to an end with."""


def _handler(root: Path, manners: Manners, over: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            manners.asked.append(f"{path} {self.headers.get('Range', '')}".strip())
            file = root / path.lstrip("/")
            if not file.is_file():
                self._answer(404, b"")
                return
            content = file.read_bytes()
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            start, end = (int(asked[1]), int(asked[2]) + 1) if asked else (0, len(content))
            met = path.startswith(manners.where) and path.endswith(manners.only)
            way = manners.way if met else "honest"
            getattr(self, f"_{way.replace(' ', '_')}")(content, start, end, bool(asked))

        def _part(self, body: bytes, start: int, end: int, size: int, ranged: bool, length: int | None = None) -> None:
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{size}"} if ranged else {}
            self._answer(206 if ranged else 200, body, headers, length)

        def _answer(
            self, status: int, body: bytes, headers: Mapping[str, str] | None = None, length: int | None = None
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.end_headers()
            if manners.cuts and manners.drawn.randrange(manners.cuts) == 0:
                body, self.close_connection = body[: manners.drawn.randrange(len(body) + 1)], True
                manners.was_cut += 1
            self.wfile.write(body)
            manners.sent += len(body)
            if length is not None and length != len(body):
                self.close_connection = True

        def _honest(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(content[start:end], start, end, len(content), ranged)

        def _whole(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self.protocol_version = "HTTP/1.0"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)
            manners.sent += len(content)
            self.close_connection = True

        def _lies(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(content[start:end], start + 1, end + 1, len(content), ranged)

        def _other_part(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part((content[start + 1 :] + content)[: end - start], start, end, len(content), ranged)

        def _flips(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(bytes(byte ^ 1 for byte in content[start:end]), start, end, len(content), ranged)

        def _swaps(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(content[start:end][::-1], start, end, len(content), ranged)

        def _less(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(content[start : (start + end) // 2 - 7], start, end, len(content), ranged)

        def _short(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(content[start : start + 100], start, end, len(content), ranged, end - start)

        def _more(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(b"x" + content[start:end] * 3, start, end, len(content), ranged)

        def _circle(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._answer(302, b"", {"Location": f"{self.path.partition('?')[0]}?{manners.drawn.random()}"})

        def _moved(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._answer(302, b"", {"Location": f"{manners.elsewhere}{self.path}"})

        def _hangs(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            over.wait(60)
            self.close_connection = True

        def _drips(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(b"", start, end, len(content), ranged, end - start)

        def _error(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._answer(503, b"later")

        def _encoded(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._answer(206 if ranged else 200, content[start:end], {"Content-Encoding": "gzip"})

        def _empty(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self._part(b"", start, end, len(content), ranged)

        def _nonsense(self, content: bytes, start: int, end: int, ranged: bool) -> None:
            self.wfile.write(b"\x00\xff what is this\r\n\r\n")
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    return Handler


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away are what is tested."""


@contextmanager
def file_server(root: Path, manners: Manners | None = None) -> Iterator[str]:
    """Serve a directory; its URL."""
    over = threading.Event()
    server = _Quiet(("127.0.0.1", 0), _handler(root, manners or Manners(), over))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()
