"""A control group made for a single run: where it may be made, and what the kernel lets it do."""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from weightpager.machine.processor import V2_NAMES, Hierarchy, words

logger = logging.getLogger(__name__)

GRACE_SECONDS = 10.0
"""How long to wait for processes that were killed."""

_PREFIX = "weightpager-"


class Group:
    """A new, empty control group.

    Attributes:
        version: 1 or 2, which name their files differently.
        top: where the hierarchy is mounted.
        controllers: those that work in it, by their names in version 1.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, hierarchy: Hierarchy, wanted: frozenset[str]) -> None:
        self.version, self.top = hierarchy.version, hierarchy.top
        parent, self.controllers, self._enabled = _best_parent(hierarchy, wanted)
        self.path = parent / f"{_PREFIX}{os.getpid()}-{time.monotonic_ns()}"
        try:
            self.path.mkdir()
        except OSError:
            _disable(parent, self._enabled)
            raise

    def read(self, v1: str, v2: str) -> str:
        """The text of the file that has one of these names."""
        return (self.path / (v1, v2)[self.version - 1]).read_text()

    def field(self, v1: str, v2: str, name: str) -> int:
        """The number behind a name at the start of a line of the file that has one of these names.

        Raises:
            LookupError: no line has it.
        """
        for line in self.read(v1, v2).splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
        raise LookupError(name)

    def write(self, v1: str, v2: str, value: str) -> None:
        """Set the file that has one of these names."""
        _write(self.path / (v1, v2)[self.version - 1], value)

    def add(self, process: int) -> None:
        self.write("cgroup.procs", "cgroup.procs", str(process))

    def kill(self) -> None:
        """Kill every process in it and in groups inside it; those forked meanwhile too."""
        deadline = time.monotonic() + GRACE_SECONDS
        while (processes := self._processes()) and time.monotonic() < deadline:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.005)

    def remove(self) -> None:
        """Kill what is in it and remove it; what can't be removed is logged, never raised."""
        self.kill()
        self._forget_cache()
        deadline = time.monotonic() + GRACE_SECONDS
        while not self._try_remove():
            if time.monotonic() > deadline:
                logger.warning("cannot remove the control group %s: it is still in use", self.path)
                return
            time.sleep(0.005)
        _disable(self.path.parent, self._enabled)

    def _directories(self) -> list[Path]:
        """It and the groups inside it, innermost first."""
        return [Path(directory) for directory, _, _ in os.walk(self.path, topdown=False)]

    def _processes(self) -> list[int]:
        found: list[int] = []
        for directory in self._directories():
            with suppress(OSError):  # a group inside it that has gone meanwhile
                found += map(int, (directory / "cgroup.procs").read_text().split())
        return found

    def _forget_cache(self) -> None:
        """Free the page cache charged to it, or the next run would find those pages there and not be charged."""
        if "memory" not in self.controllers:
            return
        with suppress(OSError):  # what is in use stays: EAGAIN, EBUSY; memory.reclaim is missing before Linux 5.19
            everything = "0" if self.version == 1 else (self.path / "memory.current").read_text()
            self.write("memory.force_empty", "memory.reclaim", everything)

    def _try_remove(self) -> bool:
        try:
            for directory in self._directories():
                directory.rmdir()
        except OSError:
            return False
        return True


def places(hierarchy: Hierarchy) -> list[Path]:
    """Where a new group may be made, best first.

    Version 1: in this process's own group. Version 2: there too, or in a group around it, since a group that has
    processes can't hand controllers on. So the limits around the process keep holding as far as possible.
    """
    return [hierarchy.own] if hierarchy.version == 1 else hierarchy.groups()


def _best_parent(hierarchy: Hierarchy, wanted: frozenset[str]) -> tuple[Path, frozenset[str], frozenset[str]]:
    """Where most of the wanted controllers work in a new group; which those are; which were enabled for it just now."""
    if hierarchy.version == 1:
        return hierarchy.own, wanted, frozenset()
    best = hierarchy.own, frozenset[str](), frozenset[str]()
    for parent in places(hierarchy):
        has, enabled = _hand_on(parent, wanted)
        if len(has) > len(best[1]):
            _disable(best[0], best[2])
            best = parent, has, enabled
        else:
            _disable(parent, enabled)
        if has == wanted:
            break
    return best


def _hand_on(parent: Path, wanted: frozenset[str]) -> tuple[frozenset[str], frozenset[str]]:
    """The wanted controllers that a version 2 group hands to groups inside it, and those that it was made to."""
    already = frozenset(name for name in wanted if V2_NAMES[name] in words(parent / "cgroup.subtree_control"))
    enabled = frozenset(name for name in wanted - already if _enable(parent, name))
    return already | enabled, enabled


def _enable(parent: Path, controller: str) -> bool:
    try:
        _write(parent / "cgroup.subtree_control", f"+{V2_NAMES[controller]}")
    except OSError:  # not available here, not permitted, or the group has processes of its own
        return False
    return True


def _disable(parent: Path, controllers: frozenset[str]) -> None:
    """Take back what was enabled for a group that is gone, or was never made."""
    if controllers and any(parent.glob(f"{_PREFIX}*")):
        return  # another run's limits would go with them
    for controller in controllers:
        with suppress(OSError):  # a group inside it hands it on
            _write(parent / "cgroup.subtree_control", f"-{V2_NAMES[controller]}")


def _write(file: Path, value: str) -> None:
    """One write to a control file, which must exist: the kernel takes the whole text at once or refuses it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error
    finally:
        os.close(descriptor)
