"""A process that dies at any step: the bundle in use is the old one or the new one, and the next command ends well.

It dies at every so many-th thing that it asks the system for; ``python -m benchmarks.fleet`` kills at random moments.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fleet import Fleet

_SUPPORT = Path(__file__).parents[1] / "support"
_PROGRAM = """
import os, shutil, sys
from pathlib import Path
sys.path[:0] = {support!r}
from damage import contents
from fleet import NAME, Device, Fleet, Place
from weightpager.delivery.publishing.prune import prune
from weightpager.delivery.pulling.pull import roll_back

WATCHED = ("open", "os.", "shutil.", "fcntl.", "tempfile.")
made = Fleet(Place(Path({root!r}), Path({keys!r})), Path({old!r}), Path({new!r}), Device(Path({device!r})))
old, new = contents(made.old), contents(made.new)
os.fsync = lambda _: None
left = [0]

def hook(event, _):
    if left[0] > 0 and event.startswith(WATCHED):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)

sys.addaudithook(hook)

def dies(command, step):
    child = os.fork()
    if not child:
        left[0] = step
        try:
            command()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

def pull(trial):
    trial.device.pull(trial.place.root)
    assert contents(trial.device.bundle) == new

def publish(trial):
    trial.place.publish(trial.old, version="3")

def prune_old(trial):
    prune(trial.place.root, trial.place.keys, 0)

def rollback(trial):
    roll_back(trial.device.into, NAME)

command, step, every, died = globals()[sys.argv[1]], 1, int(sys.argv[2]), 0
while True:
    folder = Path({folder!r}) / "turn"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = made.copied(folder)
    if command is rollback:
        pull(trial)
    killed = dies(lambda: command(trial), step)
    found = contents(trial.device.bundle)
    assert found in (old, new), step
    if command is publish:
        trial.place.publish(trial.old, version="3")
        trial.device.pull(trial.place.root)
        assert contents(trial.device.bundle) == old, step
    elif command is prune_old:
        pull(trial)
        prune_old(trial)
        assert not prune(trial.place.root, trial.place.keys, 0).files, step
    elif command is pull:
        pull(trial)
    elif found == new:
        rollback(trial)
        assert contents(trial.device.bundle) == old, step
    if not killed:
        break
    died, step = died + 1, step + every
print(died)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("command", "every"), [("pull", 83), ("publish", 41), ("prune_old", 11), ("rollback", 6)])
def test_a_kill_leaves_the_old_bundle_or_the_new_one(
    made_fleet: Fleet, tmp_path: Path, command: str, every: int
) -> None:
    program = _PROGRAM.format(
        support=[str(_SUPPORT), str(_SUPPORT / "bundles")],
        root=str(made_fleet.place.root),
        keys=str(made_fleet.place.keys),
        old=str(made_fleet.old),
        new=str(made_fleet.new),
        device=str(made_fleet.device.into),
        folder=str(tmp_path),
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, command, str(every)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) >= 3
