"""What a device pulls for a bundle that has changed, and how fast: bytes, seconds and curl's."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.fleet import NAME, Device, Place
from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.format import page_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.writer import writing
from weightpager.delivery.pulling.pull import Pulled, Wish, pull
from weightpager.delivery.sources import open_source
from weightpager.errors import ConfigError
from weightpager_lab.timing import in_turns, ratio

_SHARES = (0.1, 0.5, 1.0)
"""Of a task's own pages that are changed: one at least."""


def added(bundle: Path, folder: Path) -> dict[str, Any]:
    """A device has the bundle without its last task, and pulls the whole one."""
    place, device = _begun(folder)
    without = folder / "without.bundle"
    shutil.copytree(bundle, without)
    task = list(Bundle.open(bundle).tasks)[-1]
    collect(without, drop=[task])
    _pulled(place, device, without)
    done = _pulled(place, device, bundle)
    old, new = Bundle.open(without), Bundle.open(bundle)
    uses = {new.index.ids[page].tobytes() for page in new.pages_of(task)}
    overlap = len(uses & {row.tobytes() for row in old.index.ids}) / len(uses)
    return {"task": task, "overlap": round(overlap, 3), **_figures(done)}


def trained_again(bundle: Path, folder: Path) -> dict[str, Any]:
    """A device has the bundle, and pulls one in which a share of a task's own pages are others."""
    found = {}
    for share in _SHARES:
        place, device = _begun(folder / str(share))
        changed = folder / str(share) / "changed.bundle"
        pages = _change(bundle, changed, share)
        _pulled(place, device, bundle)
        done = _pulled(place, device, changed)
        size = Bundle.open(bundle).page_bytes
        found[str(share)] = {"changed_bytes": pages * size, **_figures(done)}
    return found


def _begun(folder: Path) -> tuple[Place, Device]:
    folder.mkdir(parents=True)
    place = Place.make(folder)
    return place, Device(folder / "device", place.trust)


def _pulled(place: Place, device: Device, bundle: Path) -> Pulled:
    place.publish(bundle)
    return device.pull(place.root)


def _figures(done: Pulled) -> dict[str, Any]:
    assert done.cost is not None
    allowed = 1.1 * done.cost.page_bytes + 65536
    return {
        "lacking_bytes": done.cost.page_bytes,
        "pulled_bytes": done.received,
        "bundle_bytes": done.cost.bundle_bytes,
        "of_allowed": round(done.received / allowed, 3),
        "saved": round(1 - done.received / done.cost.bundle_bytes, 4),
    }


def _change(bundle: Path, out: Path, share: float) -> int:
    """Write a bundle in which some of its last task's own pages have other bytes; how many."""
    opened = Bundle.open(bundle)
    own = np.flatnonzero(opened.pages.signatures == np.uint64(1 << (len(opened.tasks) - 1)))
    if not len(own):
        raise ConfigError(f"{bundle}: expected pages that only the last task needs, found none; take another bundle")
    chosen = set(own[: math.ceil(share * len(own))].tolist())
    manifest, size = opened.manifest, opened.page_bytes
    with writing(out) as writer:
        ids: list[bytes] = []
        for name, first, count in manifest.page_ranges():
            ids += writer.put_pages(name, _pages(bundle / name, first, count, size, chosen), count, size)
        for name in manifest.files:
            if name != page_file.FILE:
                writer.link(name, bundle / name)
        found = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 32)
        blocks = PageIndex(found[: manifest.pages], opened.pages.layers, opened.pages.signatures)
        writer.put_index(blocks.with_rows(found[manifest.pages :]))
        writer.finish(manifest)
    return len(chosen)


def _pages(path: Path, first: int, count: int, size: int, chosen: set[int]) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(len(page_file.header(count, size)))
        for page in range(first, first + count):
            content = file.read(size)
            yield bytes(byte ^ 1 for byte in content) if page in chosen else content


_REPEATS = 3
_THROTTLED = 50e6


def measure(bundle: Path, folder: Path) -> dict[str, Any]:
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
            runs = {"curl": partial(_curl, url, folder, rate), "pull": partial(_pull, url, place, folder, rate)}
            turns = in_turns(runs, _REPEATS, warm=0)
            found[name] = {
                **{f"{who}_mb_s": round(statistics.median(speeds) / 1e6, 1) for who, speeds in turns.items()},
                "ratio": round(ratio(turns["pull"], turns["curl"]).median, 3),
                "ratios": [round(ours / curl, 3) for curl, ours in zip(turns["curl"], turns["pull"], strict=True)],
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
