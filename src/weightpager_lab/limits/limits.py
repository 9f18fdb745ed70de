"""Limits on memory, disk and processors: how each is set, and what of it the kernel enforces."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.machine.memory import group_limit
from weightpager.machine.processor import Hierarchy
from weightpager.machine.storage import disk_of
from weightpager_lab.limits.control_group import Group


@dataclass(frozen=True)
class Limit:
    """One limit: what was asked for, and what held while the command ran.

    Attributes:
        asked: bytes, bytes per second, or CPUs; None if not asked for.
        in_force: what the kernel enforced; None if nothing.
        note: how it was enforced, or why it wasn't.
    """

    asked: int | None
    in_force: int | None
    note: str

    @property
    def held(self) -> bool:
        """Whether the command got no more than was asked for."""
        return self.asked is None or (self.in_force is not None and self.in_force <= self.asked)


@contextmanager
def pinned(cpus: int | None) -> Iterator[Limit]:
    """Let this thread, and so what it starts, run on only some of its CPUs."""
    before = os.sched_getaffinity(0)
    usable = sorted(before)[:cpus]
    if cpus is None:
        yield Limit(None, None, "not asked for")
        return
    note = "affinity to CPU " + ",".join(map(str, usable))
    os.sched_setaffinity(0, usable)
    try:
        yield Limit(cpus, len(usable), note if len(usable) == cpus else f"{note}, all that this process may use")
    finally:
        os.sched_setaffinity(0, before)


def impose(
    groups: Mapping[str, Group | str], name: str, asked: int | None, enforce: Callable[[Group, int], tuple[int, str]]
) -> Limit:
    """Set a limit on the group that can enforce it.

    Args:
        groups: by limit, its group, or why there is none.
        name: of the limit.
        asked: how much; None if it wasn't asked for.
        enforce: sets it, and says what holds and how.
    """
    if asked is None:
        return Limit(None, None, "not asked for")
    group = groups[name]
    if isinstance(group, str):
        return Limit(asked, None, f"unlimited: {group}")
    try:
        return Limit(asked, *enforce(group, asked))
    except (OSError, ConfigError) as error:
        return Limit(asked, None, f"unlimited: {reason(error)}")


def limit_memory(group: Group, asked: int) -> tuple[int, str]:
    """The limit that holds, the tightest of this group's and of those around it, and a note."""
    group.write("memory.limit_in_bytes", "memory.max", str(asked))
    note = f"memory controller, version {group.version}"
    try:
        group.write("memory.memsw.limit_in_bytes", "memory.swap.max", str(asked) if group.version == 1 else "0")
    except OSError:
        with suppress(FileNotFoundError):  # a kernel without swap has no such table
            note += _swap_note(Path("/proc/swaps").read_text())
    held = group_limit(Hierarchy(group.version, group.top, group.path))
    if held is None:
        raise ConfigError(f"expected the limit that was just set on {group.path}, found none")
    if held <= asked - os.sysconf("SC_PAGE_SIZE"):  # a limit is rounded down to a page
        note += ", tightened by a group around it"
    return held, note


def limit_storage(group: Group, asked: int, path: str | os.PathLike[str]) -> tuple[int, str]:
    """The limit that holds, and a note that names the disk."""
    disk = disk_of(path)
    files = "blkio.throttle.read_bps_device", "io.max"
    group.write(*files, f"{disk} {asked}" if group.version == 1 else f"{disk} rbps={asked}")
    for line in group.read(*files).splitlines():
        device, value, *_ = line.split()
        if device == disk:
            return int(value.removeprefix("rbps=")), f"reads of disk {disk}, version {group.version}"
    raise ConfigError(f"expected a limit for disk {disk} in {group.path}, found none")


def reason(error: OSError | ConfigError) -> str:
    """Why a limit doesn't hold, for people."""
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return f"not root, and no permission for {error.filename}"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _swap_note(swaps: str) -> str:
    """What to say where swap can't be limited; the first line of the table is its heading."""
    return ", but swap is not limited" if len(swaps.splitlines()) > 1 else ""
