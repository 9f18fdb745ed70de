"""Run a command in a control group: memory that counts page cache, a slow disk, few CPUs.

What can't be limited is said in the result, and never passed off as limited.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.machine.memory import group_limit
from weightpager.machine.processor import V2_NAMES, Hierarchy, find_hierarchy
from weightpager.machine.storage import mount_of, mounts
from weightpager_lab.limits.control_group import GRACE_SECONDS, Group


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


def disk_of(path: str | os.PathLike[str]) -> str:
    """``"major:minor"`` of the whole disk that a path lies on, as cgroups name it.

    Raises:
        ConfigError: its file system has no disk of its own.
    """
    number = Path(path).stat().st_dev
    if os.major(number) == 0:  # btrfs hides its disk's number, file systems without a disk have none
        number = _mounted_device(path)
    return whole_disk(os.major(number), os.minor(number))


def whole_disk(major: int, minor: int, sysfs: Path = Path("/sys")) -> str:
    """The disk of a partition; a whole disk is its own. Raises `ConfigError` if the kernel has no such block device."""
    node = (sysfs / "dev/block" / f"{major}:{minor}").resolve()
    disk = node.parent if (node / "partition").exists() else node
    try:
        return (disk / "dev").read_text().strip()
    except OSError as error:
        raise ConfigError(f"expected a block device, got {major}:{minor}, which {sysfs} doesn't know") from error


def _mounted_device(path: str | os.PathLike[str]) -> int:
    try:
        mount = mount_of(path)
    except LookupError as error:
        asked = f"{os.fspath(path)}: expected a file system on a disk"
        raise ConfigError(f"{asked}, got one whose mount is out of sight, as in a chroot") from error
    try:
        source = Path(mount.source).stat()
    except OSError:
        source = None
    if source is None or not stat.S_ISBLK(source.st_mode):
        raise ConfigError(f"{os.fspath(path)}: expected a file system on a disk, got {mount.kind} on {mount.source!r}")
    return source.st_rdev


def reason(error: OSError | ConfigError) -> str:
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return f"not root, and no permission for {error.filename}"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def _swap_note(swaps: str) -> str:
    """What to say where swap can't be limited; the first line of the table is its heading."""
    return ", but swap is not limited" if len(swaps.splitlines()) > 1 else ""


_CONTROLLERS = {"memory": "memory", "storage": "blkio"}  # by limit: the controller's name in version 1
_LAUNCHER = 'read -r _ && exec "$@" </dev/null'
"""The command must not run before it is in its groups: the shell waits for a line, then becomes the command."""

_MOST_SECONDS = 2_000_000
"""Of a timeout: the kernel is told milliseconds, in 32 bits."""


@dataclass(frozen=True)
class LimitedRun:
    """A command that has ended.

    Attributes:
        exit_code: the command's; minus the signal's number if one ended it, 126 or 127 if it couldn't be started.
        seconds: the time from its start to its end.
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
        """A line for each limit that was asked for and didn't hold; whoever shows the result must show them."""
        limits = {"memory": self.memory, "storage": self.storage, "cpus": self.cpus}
        return tuple(f"{name}: {limit.note}" for name, limit in limits.items() if not limit.held)


def run_limited(
    command: Sequence[str],
    *,
    memory: int | None = None,
    storage_bytes_per_s: int | None = None,
    cpus: int | None = None,
    storage_path: str | os.PathLike[str] = ".",
    timeout: float | None = None,
) -> LimitedRun:
    """Run a command under limits, with nothing on its standard input, and wait for it.

    It runs even where a limit can't be enforced: `LimitedRun.missing` then says why, and the caller must show it. What
    the command leaves running in its groups is killed, and the groups are removed, also when this raises.

    Args:
        command: the program and its arguments, for no shell.
        memory: most bytes, page cache included; without swap where the kernel can switch that off.
        storage_bytes_per_s: most bytes per second read from the disk that holds ``storage_path``.
        cpus: how many CPUs it may run on.
        storage_path: any path on the disk that is to be slowed down.
        timeout: seconds after which it is killed, at most 2,000,000.

    Raises:
        ConfigError: the command is empty, a limit isn't positive, or the timeout is out of bounds.
        OSError: no process can be started.
    """
    _check(command, timeout, memory=memory, storage_bytes_per_s=storage_bytes_per_s, cpus=cpus)
    with ExitStack() as cleanup:
        process, cpu_limit = _launch(command, cpus, cleanup)
        needed = ["memory"] if storage_bytes_per_s is None else ["memory", "storage"]  # memory is always measured
        groups = _join(process.pid, needed, cleanup)
        limits = {
            "memory": impose(groups, "memory", memory, limit_memory),
            "storage": impose(groups, "storage", storage_bytes_per_s, partial(limit_storage, path=storage_path)),
            "cpus": cpu_limit,
        }
        start = time.perf_counter()
        stdout, stderr, timed_out = _communicate(process, groups, timeout)
        return LimitedRun(
            command=tuple(command),
            exit_code=process.wait(),
            stdout=stdout.decode(errors="replace"),
            stderr=stderr.decode(errors="replace"),
            seconds=time.perf_counter() - start,
            timed_out=timed_out,
            peak_memory=_measured(groups["memory"], _peak_memory),
            oom_kills=_measured(groups["memory"], _oom_kills),
            **limits,
        )


def _check(command: Sequence[str], timeout: float | None, **limits: int | None) -> None:
    if not command:
        raise ConfigError("command: expected a program, got nothing")
    if timeout is not None and not 0 < timeout <= _MOST_SECONDS:
        raise ConfigError(f"timeout: expected more than zero and at most {_MOST_SECONDS} seconds, got {timeout}")
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name}: expected more than zero, got {value}")


def _launch(command: Sequence[str], cpus: int | None, cleanup: ExitStack) -> tuple[subprocess.Popen[bytes], Limit]:
    """Start the shell that will become the command, on the CPUs that it may use."""
    with pinned(cpus) as limit:
        process = subprocess.Popen(  # noqa: S603 - running the caller's command is the purpose, and no shell parses it
            ["/bin/sh", "-c", _LAUNCHER, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    cleanup.enter_context(process)
    cleanup.callback(_kill_session, process)
    return process, limit


def _join(process: int, needed: Sequence[str], cleanup: ExitStack) -> dict[str, Group | str]:
    """Move a process into new groups: by needed limit, the group that can enforce it, or why there is none."""
    try:
        table, own_groups = mounts(), Path("/proc/self/cgroup").read_text()
    except OSError as error:  # a kernel without control groups, or a system without /proc
        return dict.fromkeys(needed, reason(error))
    controllers = {limit: _CONTROLLERS[limit] for limit in needed}
    hierarchies = {controller: find_hierarchy(controller, table, own_groups) for controller in controllers.values()}
    joined: dict[str, Group | str] = {name: _no_controller(name) for name in hierarchies}
    for hierarchy in {hierarchy for hierarchy in hierarchies.values() if hierarchy is not None}:
        wanted = frozenset(controller for controller in hierarchies if hierarchies[controller] == hierarchy)
        joined |= _join_one(process, hierarchy, wanted, cleanup)
    return {limit: joined[controller] for limit, controller in controllers.items()}


def _join_one(process: int, hierarchy: Hierarchy, wanted: frozenset[str], cleanup: ExitStack) -> dict[str, Group | str]:
    """The new group for each wanted controller of one hierarchy, or why there is none."""
    try:
        group = Group(hierarchy, wanted)
        cleanup.callback(group.remove)
        group.add(process)
    except OSError as error:
        return dict.fromkeys(wanted, reason(error))
    passed_over: dict[str, Group | str] = {
        name: f"neither {hierarchy.own} nor a group around it hands its {V2_NAMES[name]} controller on"
        for name in wanted
    }
    return passed_over | dict.fromkeys(group.controllers, group)


def _no_controller(name: str) -> str:
    return f"no {' or '.join(dict.fromkeys((name, V2_NAMES[name])))} controller"


def _communicate(
    process: subprocess.Popen[bytes], groups: Mapping[str, Group | str], timeout: float | None
) -> tuple[bytes, bytes, bool]:
    """Let the command go and collect what it writes; whether its time was up."""
    try:
        return *process.communicate(b"\n", timeout), False
    except subprocess.TimeoutExpired:
        for group in groups.values():
            if isinstance(group, Group):
                group.kill()
        _kill_session(process)
    try:
        return *process.communicate(timeout=GRACE_SECONDS), True
    except subprocess.TimeoutExpired as late:  # a process that left both groups and session still holds the pipes
        return late.output or b"", late.stderr or b"", True


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a command that hasn't ended, and what stayed in its session; once reaped its number may be another's."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _measured(group: Group | str, measure: Callable[[Group], int]) -> int | None:
    if isinstance(group, str):
        return None
    try:
        return measure(group)
    except (OSError, LookupError):  # memory.peak is missing before Linux 5.19
        return None


def _peak_memory(group: Group) -> int:
    return int(group.read("memory.max_usage_in_bytes", "memory.peak"))


def _oom_kills(group: Group) -> int:
    return group.field("memory.oom_control", "memory.events", "oom_kill")
