"""Kills at random moments, cut connections, and repositories with something changed."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.bundles.damage import KINDS, contents, damage
from tests.support.fleet import NAME, WAYS, Device, Fleet, Manners, Place, file_server
from weightpager.bundle import Bundle
from weightpager.bundle.garbage import collect
from weightpager.delivery import sources
from weightpager.delivery.publishing import repository
from weightpager.delivery.pulling import transfers
from weightpager.delivery.pulling.pull import roll_back
from weightpager.errors import DeliveryError


def small_fleet(folder: Path) -> Fleet:
    """Made once for a trial, and copied for each turn."""
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


def kill_all(folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """Kill each command so often, or until the time is over."""
    fleet, end = small_fleet(folder), time.monotonic() + seconds
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


def mutate(folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """So many mutants, or as many as time allows: files damaged or swapped, old ones, servers without manners."""
    fleet, end, drawn = small_fleet(folder), time.monotonic() + seconds, random.Random(1)
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


def cut_off(folder: Path, times: int, seconds: float) -> dict[str, Any]:
    """Pull until so many connections have been cut off; each device must have the new bundle in the end."""
    fleet, end = small_fleet(folder), time.monotonic() + seconds
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
