"""Limits that hold, limits that are said not to, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from weightpager.doctor.cold import drop, resident_bytes
from weightpager.errors import ConfigError
from weightpager.machine.processor import Hierarchy
from weightpager.machine.storage import mounts
from weightpager_lab.limits import cgroup, control_group
from weightpager_lab.limits.__main__ import main, report
from weightpager_lab.limits.cgroup import LimitedRun, run_limited
from weightpager_lab.limits.control_group import Group, places

MIB = 1 << 20

ALLOCATE = "import sys; block = bytearray(int(sys.argv[1])); print(len(block))"
READ_DIRECTLY = """
import mmap, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)
buffer = mmap.mmap(-1, 1 << 20)
total = 0
while count := os.preadv(descriptor, [buffer], total):
    total += count
print(total)
"""


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def leftovers() -> list[Path]:
    """Control groups that this process made and that are still there."""
    tops = [mount.point for mount in mounts() if mount.kind in {"cgroup", "cgroup2"}]
    walked = (Path(directory) for top in tops for directory, _, _ in os.walk(top))  # other groups may go meanwhile
    return [directory for directory in walked if directory.name.startswith(f"weightpager-{os.getpid()}-")]


def hide(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file of the system's look as if it weren't there."""
    read_text = Path.read_text

    def look(path: Path, *arguments: Any, **options: Any) -> str:
        if str(path) == hidden:
            raise FileNotFoundError(2, "No such file or directory", hidden)
        return read_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", look)


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    assert leftovers() == []


@pytest.fixture(scope="module")
def _memory() -> None:
    run = run_limited(["true"], memory=256 * MIB)
    if run.memory.in_force is None:
        pytest.skip(run.memory.note)
    if run.peak_memory is None:
        pytest.skip("this kernel records no peak: version 2 needs Linux 5.19")


@pytest.fixture(scope="module")
def _storage(disk: Path) -> None:
    limit = run_limited(["true"], storage_bytes_per_s=10**9, storage_path=disk).storage
    if limit.in_force is None:
        pytest.skip(limit.note)


@pytest.fixture(scope="module")
def big_file(disk: Path) -> Path:
    path = disk / "big"
    path.write_bytes(os.urandom(96 * MIB))
    return path


def test_a_command_runs_without_limits() -> None:
    run = run_limited(["sh", "-c", 'cat; echo "$0" "$1"; echo oops >&2; exit 3', "a b", "$c"])
    assert (run.exit_code, run.stdout, run.stderr) == (3, "a b $c\n", "oops\n")
    assert not run.timed_out
    assert run.missing == ()
    assert {run.memory.note, run.storage.note, run.cpus.note} == {"not asked for"}


@pytest.mark.parametrize(
    ("command", "exit_code"), [(["weightpager-no-such-program"], 127), (["sh", "-c", "kill -TERM $$"], -signal.SIGTERM)]
)
def test_how_a_command_failed_is_said(command: list[str], exit_code: int) -> None:
    assert run_limited(command).exit_code == exit_code


def test_output_that_is_no_text_is_kept_readable() -> None:
    assert run_limited(["printf", r"a\377b"]).stdout == "a\ufffdb"


@pytest.mark.usefixtures("_memory")
def test_more_than_the_memory_is_a_kill_that_is_reported() -> None:
    run = run_limited(python(ALLOCATE, 256 * MIB), memory=64 * MIB)
    assert run.exit_code == -signal.SIGKILL
    assert run.oom_kills is not None
    assert run.oom_kills >= 1
    assert run.stdout == ""
    assert not run.timed_out


@pytest.mark.usefixtures("_memory")
def test_less_than_the_memory_is_measured() -> None:
    run = run_limited(python(ALLOCATE, 64 * MIB), memory=256 * MIB)
    assert (run.exit_code, run.oom_kills, run.missing) == (0, 0, ())
    assert run.memory.in_force == 256 * MIB
    assert run.peak_memory is not None
    assert 64 * MIB <= run.peak_memory <= 256 * MIB


@pytest.mark.slow
@pytest.mark.usefixtures("_memory")
def test_page_cache_counts_and_is_given_up_under_pressure(big_file: Path) -> None:
    drop(big_file)
    run = run_limited(["cat", str(big_file), "/dev/null"], memory=32 * MIB)
    assert (run.exit_code, run.oom_kills) == (0, 0)
    assert run.peak_memory is not None
    assert 16 * MIB <= run.peak_memory <= 32 * MIB


@pytest.mark.slow
@pytest.mark.usefixtures("_memory")
def test_what_one_run_cached_is_not_free_for_the_next(big_file: Path) -> None:
    drop(big_file)
    runs = [run_limited(["cat", str(big_file)], memory=256 * MIB) for _ in range(2)]
    peaks = [run.peak_memory for run in runs]
    assert all(peak is not None and peak >= 96 * MIB for peak in peaks), peaks
    assert resident_bytes(big_file) < 10 * MIB


@pytest.mark.slow
@pytest.mark.usefixtures("_storage")
def test_direct_reads_are_no_faster_than_the_limit(big_file: Path, disk: Path) -> None:
    rate = 96 * MIB
    run = run_limited(python(READ_DIRECTLY, big_file), storage_bytes_per_s=rate, storage_path=disk)
    assert run.stdout == f"{96 * MIB}\n"
    assert run.storage.in_force == rate
    assert run.seconds >= 0.5  # one second is due; the kernel lets short bursts through


def test_a_file_system_without_a_disk_is_not_throttled_and_says_so(memory_file_system: Path) -> None:
    run = run_limited(["echo", "ran"], storage_bytes_per_s=10**6, storage_path=memory_file_system)
    assert run.stdout == "ran\n"
    assert run.storage.in_force is None
    assert run.storage.note.startswith("unlimited: ")
    assert run.missing == (f"storage: {run.storage.note}",)


def test_cpus_are_limited_for_the_command_alone() -> None:
    before = os.sched_getaffinity(0)
    run = run_limited(python("import os; print(len(os.sched_getaffinity(0)))"), cpus=1)
    assert run.stdout == "1\n"
    assert (run.cpus.in_force, run.missing) == (1, ())
    assert os.sched_getaffinity(0) == before


def test_more_cpus_than_there_are_is_said() -> None:
    usable = len(os.sched_getaffinity(0))
    limit = run_limited(["true"], cpus=usable + 1).cpus
    assert limit.in_force == usable
    assert "all that this process may use" in limit.note


def test_a_command_whose_time_is_up_is_killed_with_its_children() -> None:
    start = time.monotonic()
    run = run_limited(["sh", "-c", "echo started; sleep 60 & sleep 60"], timeout=0.5)
    assert time.monotonic() - start < 20
    assert run.timed_out
    assert run.exit_code == -signal.SIGKILL
    assert run.stdout == "started\n"


@pytest.mark.usefixtures("_memory")
def test_what_a_command_leaves_running_is_killed() -> None:
    run = run_limited(["sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & echo $!"], memory=64 * MIB)
    assert run.exit_code == 0
    state = Path(f"/proc/{int(run.stdout)}/stat")
    deadline = time.monotonic() + 5
    while state.exists() and state.read_text().split()[2] != "Z" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not state.exists() or state.read_text().split()[2] == "Z"


@pytest.mark.usefixtures("_memory")
def test_groups_go_when_the_run_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def interrupted(*arguments: object) -> tuple[bytes, bytes, bool]:
        seen.extend(leftovers())
        raise KeyboardInterrupt

    monkeypatch.setattr(cgroup, "_communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_limited(["sleep", "60"], memory=64 * MIB)
    assert seen
    assert leftovers() == []


def test_a_storage_controller_is_touched_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[str] = []
    monkeypatch.setattr(cgroup, "find_hierarchy", lambda controller, *others: sought.append(controller))
    run_limited(["true"], memory=MIB)
    assert sought == ["memory"]


@pytest.mark.parametrize(
    ("limits", "name"),
    [({"memory": 0}, "memory"), ({"storage_bytes_per_s": -1}, "storage_bytes_per_s"), ({"cpus": 0}, "cpus")],
)
def test_limits_that_are_none_are_refused(limits: dict[str, int], name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name}: expected more than zero"):
        run_limited(["true"], **limits)  # type: ignore[arg-type] # one of the three, all of them int


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), 2_000_001.0])
def test_a_timeout_that_cannot_be_waited_for_is_refused(timeout: float) -> None:
    with pytest.raises(ConfigError, match="timeout: expected more than zero and at most 2000000 seconds, got"):
        run_limited(["true"], timeout=timeout)


def test_the_longest_timeout_can_be_waited_for() -> None:
    assert run_limited(["true"], timeout=2_000_000).exit_code == 0


def test_no_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a program"):
        run_limited([])


def test_without_controllers_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup, "find_hierarchy", lambda *arguments: None)
    run = run_limited(["echo", "ran"], memory=MIB, storage_bytes_per_s=MIB)
    assert run.stdout == "ran\n"
    assert (run.peak_memory, run.oom_kills) == (None, None)
    assert run.missing == (
        "memory: unlimited: no memory controller",
        "storage: unlimited: no blkio or io controller",
    )


def test_a_command_runs_on_a_kernel_without_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    hide("/proc/self/cgroup", monkeypatch)
    run = run_limited(["echo", "ran"], memory=MIB, storage_bytes_per_s=MIB)
    assert run.stdout == "ran\n"
    assert run.missing == (
        "memory: unlimited: /proc/self/cgroup: No such file or directory",
        "storage: unlimited: /proc/self/cgroup: No such file or directory",
    )


def test_without_permission_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def denied(file: Path, value: str) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(cgroup, "find_hierarchy", lambda *arguments: Hierarchy(1, tmp_path, tmp_path))
    monkeypatch.setattr(control_group, "_write", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    run = run_limited(["echo", "ran"], memory=MIB)
    assert run.stdout == "ran\n"
    assert run.memory.in_force is None
    assert run.memory.note.startswith("unlimited: not root, and no permission for ")
    assert list(tmp_path.iterdir()) == []


def tree(top: Path, group: str, *, controllers: str = "", handed_on: str = "") -> Path:
    """A group's directory in a fake hierarchy, with version 2's two files."""
    directory = top / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    (directory / "cgroup.subtree_control").write_text(handed_on)
    return directory


def test_version_2_may_use_groups_further_out(tmp_path: Path) -> None:
    assert places(Hierarchy(1, tmp_path, tmp_path / "a/b")) == [tmp_path / "a/b"]
    assert places(Hierarchy(2, tmp_path, tmp_path / "a/b")) == [tmp_path / "a/b", tmp_path / "a", tmp_path]
    assert places(Hierarchy(2, tmp_path, tmp_path)) == [tmp_path]


def test_a_version_2_group_is_made_where_both_controllers_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree(tmp_path, "slice/scope")
    slice_ = tree(tmp_path, "slice", handed_on="memory pids")
    tree(tmp_path, "", handed_on="memory io")
    written: list[tuple[Path, str]] = []

    def refuse(file: Path, value: str) -> None:
        written.append((file.parent, value))
        raise OSError(16, "Device or resource busy", str(file))

    monkeypatch.setattr(control_group, "_write", refuse)
    group = Group(Hierarchy(2, tmp_path, own), frozenset({"memory", "blkio"}))
    assert group.path.parent == tmp_path
    assert group.controllers == {"memory", "blkio"}
    assert set(written) == {(own, "+memory"), (own, "+io"), (slice_, "+io")}
    group.remove()
    assert not group.path.exists()


def test_what_was_enabled_for_a_group_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree(tmp_path, "", handed_on="memory")
    written: list[str] = []
    monkeypatch.setattr(control_group, "_write", lambda file, value: written.append(value))
    Group(Hierarchy(2, tmp_path, own), frozenset({"memory", "blkio"})).remove()
    assert written[0] == "+io"
    assert written[-1] == "-io"


def test_a_controller_that_another_run_uses_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree(tmp_path, "")
    written: list[str] = []

    def hand_on(file: Path, value: str) -> None:
        written.append(value)
        if value == "+io":
            file.write_text("io")

    monkeypatch.setattr(control_group, "_write", hand_on)
    first = Group(Hierarchy(2, tmp_path, own), frozenset({"blkio"}))
    second = Group(Hierarchy(2, tmp_path, own), frozenset({"blkio"}))
    first.remove()
    assert written == ["+io"]
    second.remove()
    assert list(tmp_path.glob("weightpager-*")) == []


@pytest.mark.parametrize(
    ("swaps", "note"), [("Filename Type\n", ""), ("Filename Type\n/swap file\n", ", but swap is not limited")]
)
def test_swap_that_stays_is_said(swaps: str, note: str) -> None:
    assert cgroup._swap_note(swaps) == note


def test_memory_is_limited_on_a_kernel_without_swap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(Hierarchy(2, tmp_path, tree(tmp_path, "", handed_on="memory")), frozenset({"memory"}))
    (group.path / "memory.max").touch()
    hide("/proc/swaps", monkeypatch)
    assert cgroup.limit_memory(group, MIB) == (MIB, "memory controller, version 2")


def test_the_command_line_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cpus", "1", "--json", "--", "sh", "-c", "echo out; exit 7"]) == 7
    printed = json.loads(capsys.readouterr().out)
    assert (printed["exit_code"], printed["stdout"], printed["missing"]) == (7, "out\n", [])
    assert printed["cpus"]["in_force"] == 1


def test_the_command_line_says_what_held(capsys: pytest.CaptureFixture[str], memory_file_system: Path) -> None:
    given = ["--storage", "300MB/s", "--storage-path", str(memory_file_system), "--", "sh", "-c", "echo out; kill $$"]
    assert main(given) == 128 + signal.SIGTERM
    printed = capsys.readouterr()
    assert printed.out == "out\n"
    assert "storage  unlimited: " in printed.err
    assert "memory   not asked for" in printed.err


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--memory", "1GiB"],
        ["--memory", "much", "--", "true"],
        ["--cpus", "0", "--", "true"],
        ["--timeout", "nan", "--", "true"],
        ["true"],
    ],
)
def test_wrong_usage_exits_with_2(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(given)
    assert exit_.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_the_module_is_a_program() -> None:
    command = [sys.executable, "-W", "error", "-m", "weightpager_lab.limits", "--", "echo", "ran"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout == "ran\n"
    assert "exit 0" in run.stderr


def test_a_report_shows_a_time_that_was_up() -> None:
    run = run_limited(["sleep", "60"], timeout=0.1)
    assert isinstance(run, LimitedRun)
    assert "its time" in report(run)
