"""Repositories with something changed, and connections that are cut off."""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.fleet.small import small_fleet
from tests.support.bundles.damage import KINDS, contents, damage
from tests.support.fleet import WAYS, Device, Fleet, Manners, file_server
from weightpager.delivery import sources
from weightpager.delivery.publishing import repository
from weightpager.delivery.pulling import transfers
from weightpager.errors import DeliveryError

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
