"""Run a command in a control group: memory that counts page cache, a slow disk, few CPUs.

What can't be limited is said in the result, and never passed off as limited.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from weightpager.bench.cold import Mount, mounts
from weightpager.bench.machine import disk_of
from weightpager.config import format_size, parse_bandwidth, parse_size
from weightpager.errors import ConfigError

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_CONTROLLERS = {"memory": "memory", "storage": "blkio"}
"""By limit: the controller's name in version 1."""

_V2_NAMES = {"memory": "memory", "blkio": "io"}

_LAUNCHER = 'read -r _ && exec "$@" </dev/null'
"""The command must not run before it is in its groups: the shell waits for a line, then becomes the command."""

_GRACE_SECONDS = 10.0


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


@dataclass(frozen=True)
class LimitedRun:
    """A command that has ended.

    Attributes:
        exit_code: of the command; minus the signal's number if one ended it, 126 or 127 if it couldn't be started.
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
        """A line for each limit that was asked for and didn't hold; whoever shows the result must show them."""
        limits = {"memory": self.memory, "storage": self.storage, "cpus": self.cpus}
        return tuple(f"{name}: {limit.note}" for name, limit in limits.items() if not limit.held)


@dataclass(frozen=True)
class Hierarchy:
    """A mounted hierarchy of control groups, and this process's place in it.

    Attributes:
        version: 1 or 2.
        top: where it is mounted.
        own: the directory of this process's group; `top` if that is out of sight.
    """

    version: int
    top: Path
    own: Path

    def parents(self) -> list[Path]:
        """Where a new group may be made, best first.

        Inside this process's own group, so that the limits around it keep holding. In version 2 a group that has
        processes can't hand controllers to groups inside it, so the groups around it come next.
        """
        if self.version == 1:
            return [self.own]
        depth = len(self.own.relative_to(self.top).parts)
        return [self.own, *self.own.parents][: depth + 1]


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
        self.path = parent / f"weightpager-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self.path.mkdir()
        except OSError:
            _disable(parent, self._enabled)
            raise

    def read(self, v1: str, v2: str) -> str:
        """The text of the file that has one of these names."""
        return (self.path / (v1, v2)[self.version - 1]).read_text()

    def write(self, v1: str, v2: str, value: str) -> None:
        """Set the file that has one of these names."""
        _write(self.path / (v1, v2)[self.version - 1], value)

    def add(self, process: int) -> None:
        """Move a process into it."""
        self.write("cgroup.procs", "cgroup.procs", str(process))

    def kill(self) -> None:
        """Kill every process in it and in groups inside it; those forked meanwhile too."""
        deadline = time.monotonic() + _GRACE_SECONDS
        while (processes := self._processes()) and time.monotonic() < deadline:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.005)

    def remove(self) -> None:
        """Kill what is in it and remove it; what can't be removed is logged, never raised."""
        self.kill()
        self._forget_cache()
        deadline = time.monotonic() + _GRACE_SECONDS
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


def find_hierarchy(controller: str, table: Sequence[Mount], own_groups: str) -> Hierarchy | None:
    """The hierarchy that has a controller: of version 1 where it is mounted there, else of version 2.

    Args:
        controller: its name in version 1, ``memory`` or ``blkio``.
        table: the mounts.
        own_groups: the text of ``/proc/self/cgroup``.
    """
    for mount in table:
        if mount.kind == "cgroup" and controller in mount.options:
            return Hierarchy(1, mount.point, _own_directory(mount, own_groups, controller))
    for mount in table:
        if mount.kind == "cgroup2" and _V2_NAMES[controller] in _words(mount.point / "cgroup.controllers"):
            return Hierarchy(2, mount.point, _own_directory(mount, own_groups, ""))
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
    """Run a command under limits, with nothing on its standard input, and wait for it.

    It runs even where a limit can't be enforced: `LimitedRun.missing` then says why, and the caller must show it. What
    the command leaves running in its groups is killed, and the groups are removed, also when this raises.

    Args:
        command: the program and its arguments, for no shell.
        memory: most bytes, page cache included; without swap where the kernel can switch that off.
        storage_bytes_per_s: most bytes per second read from the disk that holds ``storage_path``.
        cpus: how many CPUs it may run on.
        storage_path: any path on the disk that is to be slowed down.
        timeout: seconds after which it is killed.

    Raises:
        ConfigError: the command is empty, or a limit isn't positive.
        OSError: no process can be started.
    """
    _check(command, memory=memory, storage_bytes_per_s=storage_bytes_per_s, cpus=cpus)
    with ExitStack() as cleanup:
        process, cpu_limit = _launch(command, cpus, cleanup)
        needed = ["memory"] if storage_bytes_per_s is None else ["memory", "storage"]  # memory is always measured
        groups = _join(process.pid, needed, cleanup)
        limits = {
            "memory": _limit(groups, "memory", memory, _limit_memory),
            "storage": _limit(groups, "storage", storage_bytes_per_s, partial(_limit_storage, path=storage_path)),
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


def _check(command: Sequence[str], **limits: int | None) -> None:
    if not command:
        raise ConfigError("command: expected a program, got nothing")
    for name, value in limits.items():
        if value is not None and value <= 0:
            raise ConfigError(f"{name}: expected more than zero, got {value}")


def _launch(command: Sequence[str], cpus: int | None, cleanup: ExitStack) -> tuple[subprocess.Popen[bytes], Limit]:
    """Start the shell that will become the command, on the CPUs that it may use."""
    with _pinned(cpus) as limit:
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


@contextmanager
def _pinned(cpus: int | None) -> Iterator[Limit]:
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


def _join(process: int, needed: Sequence[str], cleanup: ExitStack) -> dict[str, Group | str]:
    """Move a process into new groups: by needed limit, the group that can enforce it, or why there is none."""
    table, own_groups = mounts(), Path("/proc/self/cgroup").read_text()
    controllers = {limit: _CONTROLLERS[limit] for limit in needed}
    found = {controller: find_hierarchy(controller, table, own_groups) for controller in controllers.values()}
    joined: dict[str, Group | str] = {name: _no_controller(name) for name in found}
    for hierarchy in {hierarchy for hierarchy in found.values() if hierarchy is not None}:
        wanted = frozenset(controller for controller in found if found[controller] == hierarchy)
        joined |= _join_one(process, hierarchy, wanted, cleanup)
    return {limit: joined[controller] for limit, controller in controllers.items()}


def _join_one(process: int, hierarchy: Hierarchy, wanted: frozenset[str], cleanup: ExitStack) -> dict[str, Group | str]:
    """The new group for each wanted controller of one hierarchy, or why there is none."""
    try:
        group = Group(hierarchy, wanted)
        cleanup.callback(group.remove)
        group.add(process)
    except OSError as error:
        return dict.fromkeys(wanted, _reason(error))
    passed_over: dict[str, Group | str] = {
        name: f"neither {hierarchy.own} nor a group around it hands its {_V2_NAMES[name]} controller on"
        for name in wanted
    }
    return passed_over | dict.fromkeys(group.controllers, group)


def _no_controller(name: str) -> str:
    return f"no {' or '.join(dict.fromkeys((name, _V2_NAMES[name])))} controller"


def _limit(
    groups: Mapping[str, Group | str], name: str, asked: int | None, enforce: Callable[[Group, int], tuple[int, str]]
) -> Limit:
    if asked is None:
        return Limit(None, None, "not asked for")
    group = groups[name]
    if isinstance(group, str):
        return Limit(asked, None, f"unlimited: {group}")
    try:
        return Limit(asked, *enforce(group, asked))
    except (OSError, ConfigError) as error:
        return Limit(asked, None, f"unlimited: {_reason(error)}")


def _limit_memory(group: Group, asked: int) -> tuple[int, str]:
    """The limit that holds, the tightest of this group's and of those around it, and a note."""
    group.write("memory.limit_in_bytes", "memory.max", str(asked))
    note = f"memory controller, version {group.version}"
    try:
        group.write("memory.memsw.limit_in_bytes", "memory.swap.max", str(asked) if group.version == 1 else "0")
    except OSError:
        note += _swap_note(Path("/proc/swaps").read_text())
    if group.version == 1:
        held = _field(group.read("memory.stat", "memory.stat"), "hierarchical_memory_limit")
    else:
        held = _tightest(group.path, group.top)
    if held <= asked - os.sysconf("SC_PAGE_SIZE"):  # a limit is rounded down to a page
        note += ", tightened by a group around it"
    return held, note


def _swap_note(swaps: str) -> str:
    """What to say where swap can't be limited; the first line of the table is its heading."""
    return ", but swap is not limited" if len(swaps.splitlines()) > 1 else ""


def _tightest(group: Path, top: Path) -> int:
    """The smallest ``memory.max`` of a version 2 group and those around it; the root has none."""
    depth = len(group.relative_to(top).parts)
    limits = [_words(directory / "memory.max") for directory in [group, *group.parents][: depth + 1]]
    return min(int(limit[0]) for limit in limits if limit and limit != ["max"])


def _limit_storage(group: Group, asked: int, path: str | os.PathLike[str]) -> tuple[int, str]:
    """The limit that holds, and a note that names the disk."""
    disk = disk_of(path)
    files = "blkio.throttle.read_bps_device", "io.max"
    group.write(*files, f"{disk} {asked}" if group.version == 1 else f"{disk} rbps={asked}")
    for line in group.read(*files).splitlines():
        device, value, *_ = line.split()
        if device == disk:
            return int(value.removeprefix("rbps=")), f"reads of disk {disk}, version {group.version}"
    raise ConfigError(f"expected a limit for disk {disk} in {group.path}, found none")


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
        return *process.communicate(timeout=_GRACE_SECONDS), True
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
    return _field(group.read("memory.oom_control", "memory.events"), "oom_kill")


def _best_parent(hierarchy: Hierarchy, wanted: frozenset[str]) -> tuple[Path, frozenset[str], frozenset[str]]:
    """Where most of the wanted controllers work in a new group; which those are; which were enabled for it just now."""
    if hierarchy.version == 1:
        return hierarchy.own, wanted, frozenset()
    best = hierarchy.own, frozenset[str](), frozenset[str]()
    for parent in hierarchy.parents():
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
    already = frozenset(name for name in wanted if _V2_NAMES[name] in _words(parent / "cgroup.subtree_control"))
    enabled = frozenset(name for name in wanted - already if _enable(parent, name))
    return already | enabled, enabled


def _enable(parent: Path, controller: str) -> bool:
    try:
        _write(parent / "cgroup.subtree_control", f"+{_V2_NAMES[controller]}")
    except OSError:  # not available here, not permitted, or the group has processes of its own
        return False
    return True


def _disable(parent: Path, controllers: frozenset[str]) -> None:
    for controller in controllers:
        with suppress(OSError):  # somebody else has begun to use it
            _write(parent / "cgroup.subtree_control", f"-{_V2_NAMES[controller]}")


def _own_directory(mount: Mount, own_groups: str, controller: str) -> Path:
    """This process's group in a mounted hierarchy, the mount itself if the group lies outside of it.

    Args:
        mount: of the hierarchy; a container may see only a part of it, below ``mount.root``.
        own_groups: lines such as ``4:memory:/user``; version 2's line names no controller.
        controller: of the hierarchy in version 1, empty for version 2.
    """
    for line in own_groups.splitlines():
        _, controllers, group = line.split(":", 2)
        if controller in controllers.split(","):
            inside = os.path.relpath(group, mount.root)
            directory = mount.point / inside
            return directory if not inside.startswith("..") and directory.is_dir() else mount.point
    return mount.point


def _write(file: Path, value: str) -> None:
    """One write to a control file, which must exist: the kernel takes the whole text at once or refuses it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(file)) from error
    finally:
        os.close(descriptor)


def _words(file: Path) -> list[str]:
    """The words of a control file; none if it can't be read."""
    try:
        return file.read_text().split()
    except OSError:
        return []


def _field(text: str, name: str) -> int:
    """The number behind a name at the start of a line.

    Raises:
        LookupError: no line has it.
    """
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    raise LookupError(name)


def _reason(error: OSError | ConfigError) -> str:
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        return f"not root, and no permission for {error.filename}"
    return f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename else str(error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; its exit code is the command's, 128 plus the number of a signal that ended it."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    split = given.index("--") if "--" in given else len(given)
    parser = _parser()
    options = parser.parse_args(given[:split])
    command = given[split + 1 :]
    if not command:
        parser.error("expected a command after --")
    try:
        run = run_limited(
            command,
            memory=options.memory,
            storage_bytes_per_s=options.storage,
            cpus=options.cpus,
            storage_path=options.storage_path,
            timeout=options.timeout,
        )
    except ConfigError as error:
        parser.error(str(error))
    if options.json:
        sys.stdout.write(json.dumps(dataclasses.asdict(run) | {"missing": run.missing}, indent=2) + "\n")
    else:
        sys.stdout.write(run.stdout)
        sys.stderr.write(run.stderr + report(run))
    return run.exit_code if run.exit_code >= 0 else 128 - run.exit_code


def report(run: LimitedRun) -> str:
    """What held while a command ran, as lines for people."""
    ending = f"killed after {run.seconds:.2f} s, its time" if run.timed_out else f"{run.seconds:.2f} s"
    peak = "not measured" if run.peak_memory is None else format_size(run.peak_memory)
    kills = "not counted" if run.oom_kills is None else str(run.oom_kills)
    return "\n".join([
        f"exit {run.exit_code}, {ending}; peak memory with page cache: {peak}; out-of-memory kills: {kills}",
        f"  memory   {_shown(run.memory, format_size)}",
        f"  storage  {_shown(run.storage, lambda rate: f'{rate / 1e6:.1f} MB/s')}",
        f"  cpus     {_shown(run.cpus, str)}",
        "",
    ])  # fmt: skip


def _shown(limit: Limit, form: Callable[[int], str]) -> str:
    return limit.note if limit.in_force is None else f"{form(limit.in_force)} ({limit.note})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m weightpager.bench.cgroup",
        usage="%(prog)s [options] -- COMMAND [ARGUMENT ...]",
        description="Run a command with limited memory (page cache included), a slower disk and fewer CPUs.",
        epilog="A limit that can't be enforced is reported as unlimited; the command runs all the same.",
    )
    parser.add_argument("--memory", type=_argument(parse_size), metavar="SIZE", help="most memory, such as 512MiB")
    parser.add_argument(
        "--storage",
        type=_argument(lambda text: int(parse_bandwidth(text))),
        metavar="RATE",
        help="most bytes read per second, such as 300MB/s",
    )
    parser.add_argument(
        "--storage-path", default=".", metavar="PATH", help="a path on the disk to slow down (default: .)"
    )
    parser.add_argument("--cpus", type=int, metavar="N", help="how many CPUs")
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="kill the command after so long")
    parser.add_argument("--json", action="store_true", help="print the result, the command's output in it, as JSON")
    return parser


def _argument(parse: Callable[[str], _T]) -> Callable[[str], _T]:
    """A parser of ours as argparse wants it."""

    def convert(text: str) -> _T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


if __name__ == "__main__":
    sys.exit(main())
