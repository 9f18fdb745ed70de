"""A whole pull, against curl fetching one file of as many bytes from the same server."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.fleet import NAME, Place
from weightpager.delivery.pulling.pull import Wish, pull
from weightpager.delivery.sources import open_source

_REPEATS = 3
_THROTTLED = 50e6


def measure(bundle: Path, folder: Path) -> dict[str, Any]:
    """Medians of some turns; curl and pull take turns."""
    folder.mkdir(parents=True)
    place = Place.make(folder)
    place.publish(bundle)
    packs = sorted((place.root / "packs").glob("*.pack"))
    with (place.root / "one").open("wb") as one:
        for pack in packs:
            one.write(pack.read_bytes())
    found: dict[str, Any] = {"bytes": (place.root / "one").stat().st_size}
    with _server(place.root) as url:
        for name, rate in (("throttled", _THROTTLED), ("unthrottled", None)):
            turns = [(_curl(url, folder, rate), _pull(url, place, folder, rate)) for _ in range(_REPEATS)]
            curl, ours = (statistics.median(column) for column in zip(*turns, strict=True))
            found[name] = {
                "curl_mb_s": round(curl / 1e6, 1),
                "pull_mb_s": round(ours / 1e6, 1),
                "ratio": round(statistics.median(ours / curl for curl, ours in turns), 3),
                "ratios": [round(ours / curl, 3) for curl, ours in turns],
            }
    return found


def _curl(url: str, folder: Path, rate: float | None) -> float:
    limit = [] if rate is None else ["--limit-rate", str(int(rate))]
    target, start = folder / "one", time.monotonic()
    subprocess.run(["curl", "-fsS", *limit, "-o", target, f"{url}/one"], check=True)
    seconds = time.monotonic() - start
    size = target.stat().st_size
    target.unlink()
    os.sync()
    return size / seconds


def _pull(url: str, place: Place, folder: Path, rate: float | None) -> float:
    into = folder / "device"
    into.mkdir()
    source, start = open_source(url, rate), time.monotonic()
    done = pull(source, into, Wish(NAME, root=place.trust))
    seconds = time.monotonic() - start
    source.close()
    shutil.rmtree(into)
    os.sync()
    return done.received / seconds


class _Handler(SimpleHTTPRequestHandler):
    """Files and parts of them, by ``sendfile``."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        size, asked = path.stat().st_size, self.headers.get("Range")
        start, end = 0, size
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last) + 1
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.send_header("Content-Length", str(end - start))
        self.end_headers()
        self.wfile.flush()
        with path.open("rb") as file:
            while start < end:
                start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _serve(root: Path, pipe: Connection) -> None:
    os.chdir(root)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    pipe.send(server.server_address[1])
    server.serve_forever()


@contextmanager
def _server(root: Path) -> Iterator[str]:
    """In a process of its own, whose URL it is."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(root, theirs), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.kill()
        process.join()
