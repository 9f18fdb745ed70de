"""The processor: cores that this process may use, and their caches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from weightpager.machine.paths import has_directory
from weightpager.machine.storage import Mount, mounts

V2_NAMES = {"memory": "memory", "blkio": "io", "cpu": "cpu"}
"""By a controller's name in version 1: its name in version 2."""


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy of control groups, and a group in it.

    Attributes:
        version: 1 or 2.
        top: where it is mounted.
        own: the directory of this process's group; `top` if that is out of sight.
    """

    version: int
    top: Path
    own: Path

    def groups(self) -> list[Path]:
        """The group and those around it, innermost first: the limits of all of them hold."""
        depth = len(self.own.relative_to(self.top).parts)
        return [self.own, *self.own.parents][: depth + 1]


def own_hierarchy(controller: str, root: Path) -> Hierarchy | None:
    """The hierarchy that has a controller, as `find_hierarchy` takes it, with this process's group.

    ``root`` has ``proc``, and the paths of ``mountinfo`` begin in it.
    """
    table = [mount.below(root) for mount in mounts(text_of(root / "proc/self/mountinfo"))]
    return find_hierarchy(controller, table, text_of(root / "proc/self/cgroup"))


def find_hierarchy(controller: str, table: Sequence[Mount], own_groups: str) -> Hierarchy | None:
    """The hierarchy that has a controller: of version 1 where it is mounted there, else of version 2.

    The controller has its name in version 1, ``memory``, ``blkio`` or ``cpu``. ``own_groups`` is the text of
    ``/proc/self/cgroup``; lines that aren't such are passed over.
    """
    for mount in table:
        if mount.kind == "cgroup" and controller in mount.options:
            return Hierarchy(1, mount.point, _own_directory(mount, own_groups, controller))
    for mount in table:
        if mount.kind == "cgroup2" and V2_NAMES[controller] in words(mount.point / "cgroup.controllers"):
            return Hierarchy(2, mount.point, _own_directory(mount, own_groups, ""))
    return None


def words(file: Path) -> list[str]:
    """The words of a control file; none if it can't be read."""
    return text_of(file).split()


def text_of(file: Path) -> str:
    """What a file says; nothing if it can't be read."""
    try:
        return file.read_text(errors="replace")
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""


def whole_number(text: str) -> int | None:
    """A number of ``/proc`` or of a control file; None if it is something else, such as ``max``."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None  # 64 bits have 19 digits or 20


def _own_directory(mount: Mount, own_groups: str, controller: str) -> Path:
    """This process's group in a mounted hierarchy, the mount itself if the group lies outside of it.

    A container may see only a part of the hierarchy, below ``mount.root``. ``own_groups`` has lines such as
    ``4:memory:/user``; version 2's line names no controller, which is empty here.
    """
    for line in own_groups.splitlines():
        _, _, fields = line.partition(":")
        controllers, _, group = fields.partition(":")
        if group.startswith("/") and controller in controllers.split(","):
            inside = os.path.relpath(group, mount.root or "/")
            directory = mount.point / inside
            return directory if not inside.startswith("..") and has_directory(directory) else mount.point
    return mount.point


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its quota of processor time is worth if they are fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, core_quota() or allowed)


@cache
def core_quota(root: Path = Path("/")) -> int | None:
    """Cores that the least quota of this process's control group and those around it is worth, rounded up.

    None if there is no quota. Read once: files are many, and the count is asked for at every computation.
    """
    hierarchy = own_hierarchy("cpu", root)
    if hierarchy is None:
        return None
    quotas = [_quota(group, hierarchy.version) for group in hierarchy.groups()]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(group: Path, version: int) -> int | None:
    """Of one group alone: microseconds of processor time in each period, over the period's own, rounded up."""
    files = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    numbers = [whole_number(word) for file in files for word in words(group / file)]
    if len(numbers) != 2:
        return None
    time, period = numbers
    return -(-time // period) if time and period else None  # "max" and -1 aren't whole numbers
