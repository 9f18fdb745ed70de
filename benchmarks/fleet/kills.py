"""Kill -9 of publish, pull and rollback at random moments: always the old bundle or the new one, then it ends well."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fleet.small import small_fleet
from tests.support.bundles.damage import contents
from tests.support.fleet import NAME, Device, Fleet, Place
from weightpager.delivery.pulling.pull import roll_back

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
