"""What a device pulls for a changed bundle and how fast, and what kills, cut connections and mutants leave."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import shutil
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.bundles.damage import KINDS, contents, damage
from tests.support.fleet import NAME, WAYS, Device, Fleet, Manners, Place, file_server
from weightpager.bundle import Bundle, PageIndex
from weightpager.bundle.format import page_file
from weightpager.bundle.garbage import collect
from weightpager.bundle.writer import writing
from weightpager.delivery import sources
from weightpager.delivery.publishing import repository
from weightpager.delivery.pulling import transfers
from weightpager.delivery.pulling.pull import Pulled, Wish, pull, roll_back
from weightpager.delivery.sources import open_source
from weightpager.errors import ConfigError, DeliveryError
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
            runs = {
                "curl": partial(_curl_speed, url, folder, rate),
                "pull": partial(_pull_speed, url, place, folder, rate),
            }
            turns = in_turns(runs, _REPEATS, warm=0)
            found[name] = {
                **{f"{who}_mb_s": round(statistics.median(speeds) / 1e6, 1) for who, speeds in turns.items()},
                "ratio": round(ratio(turns["pull"], turns["curl"]).median, 3),
                "ratios": [round(ours / curl, 3) for curl, ours in zip(turns["curl"], turns["pull"], strict=True)],
            }
    return found


def _curl_speed(url: str, folder: Path, rate: float | None) -> float:
    limit = [] if rate is None else ["--limit-rate", str(int(rate))]
    target, start = folder / "one", time.monotonic()
    subprocess.run(["curl", "-fsS", *limit, "-o", target, f"{url}/one"], check=True)
    seconds = time.monotonic() - start
    size = target.stat().st_size
    target.unlink()
    os.sync()
    return size / seconds


def _pull_speed(url: str, place: Place, folder: Path, rate: float | None) -> float:
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


def small_fleet(folder: Path) -> Fleet:
    """Made once for all trials, and copied for each turn."""
    import weightpager as wp
    from tests.support.models import tiny  # torch, which processes that are killed don't need

    folder.mkdir(parents=True)
    new, old = folder / "new.bundle", folder / "old.bundle"
    wp.compile(tiny.assistant(folder), out=new)
    shutil.copytree(new, old)
    collect(old, drop=[list(Bundle.open(new).tasks)[-1]])
    place = Place.make(folder / "made")
    device = Device(folder / "made" / "device", place.trust)
    place.publish(old)
    device.pull(place.root)
    place.publish(new)
    return Fleet(place, old, new, device)


_IMPORTED = ["tests.support.fleet", "weightpager.delivery.publishing.publish", "weightpager.delivery.pulling.pull"]
"""Killed processes are forks of one that has imported what takes long."""

_BEYOND = 1.1
"""Moments go so far beyond the time that a command takes."""


def _publish(fleet: Fleet) -> None:
    fleet.place.publish(fleet.old, version="3")


def _pull(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)


def _rollback(fleet: Fleet) -> None:
    roll_back(fleet.device.into, NAME)


def kill_all(fleet: Fleet, folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """Kill each command so often, or until the time is over."""
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in ("publish", "pull", "rollback")}
    failures: list[str] = []
    paces = {name: _pace(context, command, fleet, folder / "pace" / name) for name, command in _COMMANDS.items()}
    for turn in range(times):
        for name, command in _COMMANDS.items():
            if time.monotonic() > end:
                break
            trial = _ready(fleet, folder / "turn", name)
            process = context.Process(target=command, args=(trial,))
            process.start()
            time.sleep(random.uniform(0, _BEYOND * paces[name]))
            process.kill()
            process.join()
            try:
                outcomes[name][_outcome(trial, name, command)] += 1
            except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
                failures.append(f"{name}, turn {turn}: {error!r}")
    return {"seconds": paces, "outcomes": {name: dict(found) for name, found in outcomes.items()}, "failures": failures}


_COMMANDS: dict[str, Callable[[Fleet], None]] = {"publish": _publish, "pull": _pull, "rollback": _rollback}


def _ready(fleet: Fleet, folder: Path, name: str) -> Fleet:
    shutil.rmtree(folder, ignore_errors=True)
    trial = fleet.copied(folder)
    if name == "rollback":
        trial.device.pull(trial.place.root)
    return trial


def _pace(context: Any, command: Callable[[Fleet], None], fleet: Fleet, folder: Path) -> float:
    trial = _ready(fleet, folder, "rollback" if command is _rollback else "")
    process, start = context.Process(target=command, args=(trial,)), time.monotonic()
    process.start()
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - start


def _outcome(trial: Fleet, name: str, command: Callable[[Fleet], None]) -> str:
    """What the kill has left; then the same command must end well."""
    if name == "publish":
        fresh = Device(trial.place.root.parent / "fresh", trial.place.trust)
        done = fresh.pull(trial.place.root)
        expected = {"2": trial.new, "3": trial.old}[done.version]
        assert contents(fresh.bundle) == contents(expected), "a mixed bundle"
        again = Place(trial.place.root, trial.place.keys).publish(trial.old, version="3")
        assert trial.device.pull(trial.place.root).version == again.version
        assert contents(trial.device.bundle) == contents(trial.old), "a mixed bundle after all"
        return "new" if done.version == "3" else "old"
    found = contents(trial.device.bundle)
    assert found in (contents(trial.old), contents(trial.new)), "a mixed bundle"
    is_new = found == contents(trial.new)
    if name == "pull":
        command(trial)
        assert contents(trial.device.bundle) == contents(trial.new), "a mixed bundle after all"
        return "new" if is_new else "old"
    if is_new:
        command(trial)
    assert contents(trial.device.bundle) == contents(trial.old), "a mixed bundle after all"
    return "old" if is_new else "new"


_FOLDERS = ("/metadata/", "/targets/", "/packs/", "/objects/")


def mutate(fleet: Fleet, folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """So many mutants, or as many as time allows: files damaged or swapped, old ones, servers without manners."""
    fleet, end, drawn = fleet.copied(folder), time.monotonic() + seconds, random.Random(1)
    older = folder / "older"
    shutil.copytree(fleet.place.root, older)
    repository.refresh(fleet.place.root, fleet.place.keys, ["targets"])
    transfers.FIRST_WAIT, transfers.TRIES, sources.SECONDS = 1e-4, 2, 0.05
    old, new = contents(fleet.device.bundle), contents(fleet.new)
    outcomes: Counter[str] = Counter()
    failures: list[str] = []
    turn = 0
    while turn < times and time.monotonic() < end:
        turn += 1
        trial, is_fresh = _trial(fleet, folder), drawn.random() < 0.5
        device = Device(folder / "turn" / "fresh", fleet.place.trust) if is_fresh else trial.device
        what, outcome = _pull_mutant(trial, device, older, drawn)
        outcomes[outcome] += 1
        found = contents(device.bundle) if device.bundle.exists() else {}
        if found != (new if outcome == "installed" else {} if is_fresh else old) or outcome.startswith("another"):
            failures.append(f"turn {turn}: {what}: {outcome}: another bundle than that, or another error")
    return {"tried": turn, "outcomes": dict(outcomes), "failures": failures}


def _trial(fleet: Fleet, folder: Path) -> Fleet:
    shutil.rmtree(folder / "turn", ignore_errors=True)
    return fleet.copied(folder / "turn")


def _pull_mutant(trial: Fleet, device: Device, older: Path, drawn: random.Random) -> tuple[str, str]:
    """Change something, and pull; what was changed, and what came of it."""
    way = drawn.choice([*KINDS, "swap", "old", "server"])
    files = sorted(path for path in trial.place.root.rglob("*") if path.is_file() and path.stat().st_size)
    place, manners = drawn.choice(files), None
    if way == "swap":
        place.write_bytes(drawn.choice(files).read_bytes())
    elif way == "old":
        relative = place.relative_to(trial.place.root)
        if (older / relative).exists():
            shutil.copy(older / relative, place)
    elif way == "server":
        manners = Manners(drawn.choice(WAYS), drawn.choice(_FOLDERS))
    else:
        damage(place, way, drawn.randrange(10**9))
    what = f"{way} {place.name if manners is None else (manners.way, manners.where)}"
    try:
        if manners is None:
            return what, device.pull(trial.place.root).outcome
        with file_server(trial.place.root, manners) as url:
            return what, device.pull(url).outcome
    except DeliveryError as error:
        return what, type(error).__name__
    except Exception as error:  # noqa: BLE001 - an error that isn't ours is a finding
        return what, f"another error: {error!r}"


def cut_off(fleet: Fleet, folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """Pull until so many connections have been cut off; each device must have the new bundle in the end."""
    folder.mkdir(parents=True)
    end = time.monotonic() + seconds
    transfers.FIRST_WAIT = 1e-3
    manners, failures = Manners(cuts=4, drawn=random.Random(3)), []
    devices = pulls = 0
    with file_server(fleet.place.root, manners) as url:
        while manners.was_cut < times and time.monotonic() < end:
            device = Device(folder / "fresh", fleet.place.trust)
            shutil.rmtree(device.into, ignore_errors=True)
            devices += 1
            for _ in range(100):
                pulls += 1
                try:
                    device.pull(url)
                    break
                except DeliveryError:
                    if device.bundle.exists():
                        failures.append("a bundle though the pull failed")
            if contents(device.bundle) != contents(fleet.new):
                failures.append("a mixed bundle")
    return {"cut": manners.was_cut, "devices": devices, "pulls": pulls, "failures": failures}
