"""Run a command in a control group: memory that counts page cache, a slow disk, few CPUs.

What can't be limited is said, in the result, and never passed off as limited.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from weightpager.bench.cold import Mount, mounts
from weightpager.bench.machine import disk_of
from weightpager.config import format_size, parse_bandwidth, parse_size
from weightpager.errors import ConfigError

logger = logging.getLogger(__name__)

# The command may not run before it is in its groups: the shell waits for a line. Its own exec keeps the process id.
_LAUNCHER = 'read -r _ && exec "$@" </dev/null'
_GRACE_SECONDS = 10.0


@dataclass(frozen=True)
class Limit:
    """One limit: what was asked for, and what held while the command ran.

    Attributes:
        asked: bytes, bytes per second or CPUs; None if not asked for.
        in_force: what the kernel enforced; None if nothing.
        note: how it was enforced, or why it wasn't.
    """

    asked: int | None
    in_force: int | None
    note: str

    @property
    def held(self) -> bool:
        """Whether the command had no more than was asked for."""
        return self.asked is None or (self.in_force is not None and self.in_force <= self.asked)


@dataclass(frozen=True)
class LimitedRun:
    """A command that has ended.

    Attributes:
        exit_code: of the command; minus the signal's number if one ended it; 126 or 127 if it couldn't be started.
        seconds: from its start to its end.
        timed_out: whether it was killed because its time was up.
        peak_memory: most bytes that its group held, page cache included; None if that couldn't be measured.
        oom_kills: processes of it that were killed for want of memory; None if that couldn't be counted.
        memory: bytes, page cache included.
        storage: bytes per second read from the disk.
        cpus: CPUs that it could run on.
    """

    command: tuple[str, ...]
    exit_code: int
    stdout: str
    stderr: str
    seconds: float
    timed_out: bool
    peak_memory: int | None
    oom_kills: int | None
    memory: Limit
    storage: Limit
    cpus: Limit

    @property
    def missing(self) -> tuple[str, ...]:
        """A line for each limit that was asked for and didn't hold; a result must show them."""
        limits = {"memory": self.memory, "storage": self.storage, "cpus": self.cpus}
        return tuple(f"{name}: {limit.note}" for name, limit in limits.items() if not limit.held)


@dataclass(frozen=True)
class Hierarchy:
    """A mounted cgroup hierarchy, and this process's place in it.

    Attributes:
        version: 1 or 2.
        top: where it is mounted.
        own: the directory of this process's group; ``top`` if that is out of sight.
    """

    version: int
    top: Path
    own: Path

    def parents(self) -> list[Path]:
        """Where a new group may be made, best first.

        Inside this process's own group, so that limits around it keep holding. In version 2 a group that has
        processes can't hand controllers to groups inside it, so the groups around it come next.
        """
        if self.version == 1:
            return [self.own]
        depth = len(self.own.relative_to(self.top).parts)
        return [self.own, *list(self.own.parents)[:depth]]


class Group:
    """A new, empty control group; `remove` kills what is left in it.

    Raises:
        OSError: it can't be made.
    """

    def __init__(self, parent: Path, version: int, enabled: frozenset[str] = frozenset()) -> None:
        self.version = version
        self.path = parent / f"weightpager-{os.getpid()}-{time.monotonic_ns()}"
        self._enabled = enabled
        self.path.mkdir()

    def read(self, name: str) -> str:
        """The text of one of its files."""
        return (self.path / name).read_text()

    def write(self, name: str, value: str) -> None:
        """Set one of its files, in one system call as the kernel wants it."""
        _write(self.path / name, value)

    def add(self, process: int) -> None:
        """Move a process into it."""
        self.write("cgroup.procs", str(process))

    def remove(self) -> None:
        """Kill every process in it and in groups inside it, then remove it; what can't be removed is logged."""
        self.kill()
        self._forget_cache()
        deadline = time.monotonic() + _GRACE_SECONDS
        while not self._try_remove():
            if time.monotonic() > deadline:
                logger.warning("cannot remove the control group %s: it is still in use", self.path)
                return
            time.sleep(0.01)
        for controller in self._enabled:
            with suppress(OSError):  # others may use it by now
                _write(self.path.parent / "cgroup.subtree_control", f"-{controller}")

    def kill(self) -> None:
        """Kill every process in it and in groups inside it; processes forked meanwhile too."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (processes := self._processes()) and time.monotonic() < deadline:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)

    def _directories(self) -> list[Path]:
        """It and the groups inside it, innermost first."""
        return [Path(directory) for directory, _, _ in os.walk(self.path, topdown=False)]

    def _processes(self) -> list[int]:
        found: list[int] = []
        for directory in self._directories():
            with suppress(OSError):  # removed meanwhile
                found += map(int, (directory / "cgroup.procs").read_text().split())
        return found

    def _forget_cache(self) -> None:
        """Give back its page cache: the next group is charged only for what it reads itself into memory."""
        with suppress(OSError):  # not every kernel can, and some say EAGAIN when little is left
            if self.version == 1:
                self.write("memory.force_empty", "0")
            else:
                self.write("memory.reclaim", self.read("memory.current").strip())

    def _try_remove(self) -> bool:
        try:
            for directory in self._directories():
                directory.rmdir()
        except OSError:
            return False
        return True


def find_hierarchy(controller: str, table: Sequence[Mount], own_groups: str) -> Hierarchy | None:
    """The version 1 hierarchy that has a controller, or else the version 2 one if its top offers it.

    Args:
        controller: version 1's name: ``memory`` or ``blkio``.
        table: the mounts.
        own_groups: the text of ``/proc/self/cgroup``.
    """
    for mount in table:
        if mount.kind == "cgroup" and controller in mount.options:
            return Hierarchy(1, mount.point, _own_directory(mount, _own_group(own_groups, controller)))
    for mount in table:
        if mount.kind == "cgroup2" and _in_v2(controller) in _words(mount.point / "cgroup.controllers"):
            return Hierarchy(2, mount.point, _own_directory(mount, _own_group(own_groups, "")))
    return None


def run_limited(
    command: Sequence[str],
    *,
    memory: int | None = None,
    storage_bytes_per_s: int | None = None,
    cpus: int | None = None,
    storage_path: str | os.PathLike[str] = ".",
    timeout: float | None = None,
) -> LimitedRun:
    """Run a command under limits, and wait for it.

    It runs even where a limit can't be enforced: `LimitedRun.missing` then says why, and callers must show that. Its
    standard input is empty. Whatever it leaves running is killed, and its groups are removed, also when this raises.

    Args:
        command: the program and its arguments; no shell.
        memory: most bytes, page cache included; swap is switched off for it where the kernel can.
        storage_bytes_per_s: most bytes per second read from the disk that holds ``storage_path``.
        cpus: how many CPUs it may run on.
        storage_path: any path on the disk to be slowed down.
        timeout: seconds after which it is killed.

    Raises:
        ConfigError: the command is empty, or a limit isn't positive.
        OSError: no process can be started.
    """
    for name, value in {"memory": memory, "storage_bytes_per_s": storage_bytes_per_s, "cpus": cpus}.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name}: expected more than zero, got {value}")
    if not command:
        raise ConfigError("command: expected a program, got nothing")
    with ExitStack() as cleanup:
        groups = _Groups(cleanup)
        groups.limit_memory(memory)
        groups.limit_storage(storage_bytes_per_s, storage_path)
        allowed = cleanup.enter_context(_pinned(cpus))
        return _run(tuple(command), groups, allowed, timeout)


class _Groups:
    """The groups of one run: one for memory and one for storage in version 1, the same for both in version 2."""

    def __init__(self, cleanup: ExitStack) -> None:
        self._cleanup = cleanup
        self._made: dict[str, Group] = {}  # by controller, version 1's names
        self._why_not: dict[str, str] = {}
        self.memory = self.storage = Limit(None, None, "not asked for")
        table, own = mounts(), Path("/proc/self/cgroup").read_text()
        found = {name: find_hierarchy(name, table, own) for name in ("memory", "blkio")}
        for name, hierarchy in found.items():
            if hierarchy is None:
                self._why_not[name] = f"no {name} controller"
            elif hierarchy.version == 1:
                self._make({name: hierarchy})
        self._make({name: hierarchy for name, hierarchy in found.items() if hierarchy and hierarchy.version == 2})

    def _make(self, wanted: dict[str, Hierarchy]) -> None:
        """One group for controllers of one hierarchy."""
        if not wanted:
            return
        hierarchy = next(iter(wanted.values()))
        try:
            group, has = _make_group(hierarchy, frozenset(wanted))
        except OSError as error:
            self._why_not |= {name: f"cannot make a control group in {_reason(error)}" for name in wanted}
            return
        self._cleanup.callback(group.remove)
        self._made |= {name: group for name in has}
        self._why_not |= {name: f"{hierarchy.top} hands no {name} controller on" for name in wanted.keys() - has}

    def limit_memory(self, asked: int | None) -> None:
        """Set the limit; `memory` says what came of it."""
        self.memory = self._limit("memory", asked, _limit_memory)

    def limit_storage(self, asked: int | None, path: str | os.PathLike[str]) -> None:
        """Set the limit for the disk of a path; `storage` says what came of it."""
        self.storage = self._limit("blkio", asked, lambda group, rate: _limit_storage(group, rate, path))

    def _limit(self, controller: str, asked: int | None, limit: Callable[[Group, int], tuple[int, str]]) -> Limit:
        if asked is None:
            return Limit(None, None, "not asked for")
        if controller not in self._made:
            return Limit(asked, None, f"unlimited: {self._why_not[controller]}")
        try:
            return Limit(asked, *limit(self._made[controller], asked))
        except (OSError, ConfigError) as error:
            return Limit(asked, None, f"unlimited: {_reason(error)}")

    def add(self, process: int) -> None:
        """Move a process into every group; where that fails, nothing is limited or measured there."""
        for group in {*self._made.values()}:
            try:
                group.add(process)
            except OSError as error:
                self._give_up(group, f"cannot move a process into {_reason(error)}")

    def _give_up(self, group: Group, why: str) -> None:
        lost = {name for name, made in self._made.items() if made is group}
        self._made = {name: made for name, made in self._made.items() if made is not group}
        self._why_not |= dict.fromkeys(lost, why)
        if "memory" in lost:
            self.memory = self._limit("memory", self.memory.asked, _limit_memory)
        if "blkio" in lost:
            self.storage = self._limit("blkio", self.storage.asked, _limit_memory)

    def kill(self, process: int) -> None:
        """Kill the command and all that it started; without a group, only what stayed in its session."""
        for group in {*self._made.values()}:
            group.kill()
        with suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)

    def peak_memory(self) -> int | None:
        """Most bytes charged to the memory group so far."""
        names = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}  # the latter since Linux 5.19
        return self._memory_figure(names, lambda text: int(text))

    def oom_kills(self) -> int | None:
        """Processes of the memory group killed for want of memory so far."""
        names = {1: "memory.oom_control", 2: "memory.events"}
        return self._memory_figure(names, lambda text: _field(text, "oom_kill"))

    def _memory_figure(self, names: dict[int, str], parse: Callable[[str], int]) -> int | None:
        group = self._made.get("memory")
        if group is None:
            return None
        try:
            return parse(group.read(names[group.version]))
        except (OSError, LookupError):
            return None


def _run(command: tuple[str, ...], groups: _Groups, cpus: Limit, timeout: float | None) -> LimitedRun:
    start = time.perf_counter()
    process = subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose; it passes no shell
        ["/bin/sh", "-c", _LAUNCHER, "sh", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        groups.add(process.pid)
        stdout, stderr, timed_out = _communicate(process, groups, timeout)
    finally:
        groups.kill(process.pid)
        process.wait()
    return LimitedRun(
        command=command,
        exit_code=process.returncode,
        stdout=stdout.decode(errors="replace"),
        stderr=stderr.decode(errors="replace"),
        seconds=time.perf_counter() - start,
        timed_out=timed_out,
        peak_memory=groups.peak_memory(),
        oom_kills=groups.oom_kills(),
        memory=groups.memory,
        storage=groups.storage,
        cpus=cpus,
    )


def _communicate(
    process: subprocess.Popen[bytes], groups: _Groups, timeout: float | None
) -> tuple[bytes, bytes, bool]:
    """Let the command go and collect what it writes; whether its time was up."""
    try:
        return *process.communicate(b"\n", timeout), False
    except subprocess.TimeoutExpired:
        groups.kill(process.pid)
    try:
        return *process.communicate(timeout=_GRACE_SECONDS), True
    except subprocess.TimeoutExpired as late:  # a process that got away still holds the pipes
        return late.output or b"", late.stderr or b"", True


@contextmanager
def _pinned(cpus: int | None) -> Iterator[Limit]:
    """Let this thread, and so what it starts, run on some of its CPUs only."""
    if cpus is None:
        yield Limit(None, None, "not asked for")
        return
    before = os.sched_getaffinity(0)
    usable = sorted(before)[:cpus]
    note = "affinity to CPUs " + ",".join(map(str, usable))
    if len(usable) < cpus:
        note = f"tighter: just {len(usable)} usable; {note}"
    os.sched_setaffinity(0, usable)
    try:
        yield Limit(cpus, len(usable), note)
    finally:
        os.sched_setaffinity(0, before)


def _make_group(hierarchy: Hierarchy, wanted: frozenset[str]) -> tuple[Group, frozenset[str]]:
    """A new group where most of the wanted controllers work, and those that do."""
    if hierarchy.version == 1:
        return Group(hierarchy.own, 1), wanted
    best: tuple[Path, frozenset[str], frozenset[str]] | None = None
    for parent in hierarchy.parents():
        has, enabled = _enable(parent, wanted)
        if best is None or len(has) > len(best[1]):
            best = parent, has, enabled
        if has == wanted:
            break
    assert best is not None  # there is always a parent
    return Group(best[0], 2, best[2]), best[1]
