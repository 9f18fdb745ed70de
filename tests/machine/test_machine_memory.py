"""Memory as the kernel tells it, under the limits of control groups; garbage is no memory, never an error."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightpager.machine.memory import Memory, group_left, group_limit, read_memory
from weightpager.machine.processor import Hierarchy
from weightpager.machine.storage import mounts
from weightpager_lab.limits.cgroup import run_limited

MIB = 1 << 20

MEMINFO = """MemTotal:        1024000 kB
MemFree:          100000 kB
MemAvailable:     512000 kB
HugePages_Total:       0
"""
TOTAL, AVAILABLE = 1024000 << 10, 512000 << 10

V1 = "30 29 0:26 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
V2 = "30 29 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n"


def put(root: Path, **files: str | int) -> None:
    """Write files whose names have __ for slashes."""
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n")


def group(directory: Path, version: int, limit: int | str, used: int, cache: int = 0) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    names = [("memory.limit_in_bytes", "memory.usage_in_bytes"), ("memory.max", "memory.current")][version - 1]
    for name, value in zip(names, (limit, used), strict=True):
        (directory / name).write_text(f"{value}\n")
    prefix = "total_" if version == 1 else ""
    (directory / "memory.stat").write_text(
        f"anon {used - cache}\n{prefix}inactive_file {cache}\n{prefix}active_file 0\n"
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A root with a version 2 hierarchy and this process two groups down."""
    put(tmp_path, proc__meminfo=MEMINFO, proc__self__mountinfo=V2, proc__self__cgroup="0::/outer/inner")
    (tmp_path / "sys/fs/cgroup/outer/inner").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu memory\n")
    return tmp_path


def test_a_machine_without_control_groups(tmp_path: Path) -> None:
    put(tmp_path, proc__meminfo=MEMINFO)
    assert read_memory(tmp_path) == Memory(TOTAL, AVAILABLE)
    assert read_memory(tmp_path).usable_bytes == AVAILABLE


def test_nothing_at_all_is_nothing_known(tmp_path: Path) -> None:
    assert read_memory(tmp_path) == Memory(None, None)
    assert read_memory(tmp_path / "missing").usable_bytes is None


def test_the_limit_and_what_is_left_may_be_those_of_different_groups(machine: Path) -> None:
    top = machine / "sys/fs/cgroup"
    group(top / "outer/inner", 2, 300 * MIB, 100 * MIB, cache=50 * MIB)  # 250 left
    group(top / "outer", 2, 400 * MIB, 350 * MIB, cache=20 * MIB)  # 70 left
    found = read_memory(machine)
    assert found == Memory(TOTAL, AVAILABLE, 300 * MIB, 70 * MIB)
    assert found.usable_bytes == 70 * MIB


def test_a_limit_above_the_machines_memory_is_none(machine: Path) -> None:
    group(machine / "sys/fs/cgroup/outer", 2, TOTAL + 1, MIB)
    group(machine / "sys/fs/cgroup/outer/inner", 2, "max", MIB)
    assert read_memory(machine) == Memory(TOTAL, AVAILABLE)


def test_a_group_beyond_its_limit_has_nothing_left(machine: Path) -> None:
    group(machine / "sys/fs/cgroup/outer", 2, 5 * MIB, 6 * MIB)
    assert read_memory(machine).left_bytes == 0


def test_version_1_is_read_where_it_is_mounted(tmp_path: Path) -> None:
    put(tmp_path, proc__meminfo=MEMINFO, proc__self__mountinfo=V1, proc__self__cgroup="4:memory:/jobs/one\n0::/")
    top = tmp_path / "sys/fs/cgroup/memory"
    group(top / "jobs/one", 1, 200 * MIB, 60 * MIB, cache=10 * MIB)
    group(top / "jobs", 1, 9223372036854771712, 60 * MIB)  # what version 1 says where there is no limit
    with (top / "jobs/one/memory.stat").open("a") as stat:
        stat.write(f"hierarchical_memory_limit {200 * MIB}\n")
    assert read_memory(tmp_path) == Memory(TOTAL, AVAILABLE, 200 * MIB, 150 * MIB)


def test_a_group_is_under_the_limits_around_it(tmp_path: Path) -> None:
    own = tmp_path / "outer/inner"
    own.mkdir(parents=True)
    (own / "memory.max").write_text("max\n")
    assert group_limit(Hierarchy(2, tmp_path, own)) is None
    (tmp_path / "outer/memory.max").write_text("4096\n")
    assert group_limit(Hierarchy(2, tmp_path, own)) == 4096
    assert group_left(Hierarchy(2, tmp_path, own)) is None  # nothing says what is used


def test_version_1_tells_the_tightest_limit_itself(tmp_path: Path) -> None:
    assert group_limit(Hierarchy(1, tmp_path, tmp_path)) is None
    (tmp_path / "memory.stat").write_text("cache 1\nhierarchical_memory_limit 8192\nhierarchical_memsw_limit 9\n")
    assert group_limit(Hierarchy(1, tmp_path, tmp_path)) == 8192


garbage = st.binary(max_size=60) | st.sampled_from([
    b"max", b"-1", b"9" * 5000, b"MemTotal:", b"MemTotal: kB", b"MemAvailable: x kB", b"inactive_file", b"1\0", b"::",
    b"0::/..", b"0::/\0", V2.encode(), V2.encode().replace(b"30 ", b"x "), b"a b c d e f - g h i", b"0::/outer/inner",
])  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.sampled_from([
            "proc/meminfo", "proc/self/mountinfo", "proc/self/cgroup", "sys/fs/cgroup/outer/memory.max",
            "sys/fs/cgroup/outer/memory.current", "sys/fs/cgroup/outer/memory.stat", "sys/fs/cgroup/cgroup.controllers",
        ]),
        garbage,
    )
)  # fmt: skip
def test_garbage_is_never_an_error(machine: Path, files: dict[str, bytes]) -> None:
    group(machine / "sys/fs/cgroup/outer", 2, 300 * MIB, MIB)
    put(machine, proc__meminfo=MEMINFO, proc__self__mountinfo=V2, proc__self__cgroup="0::/outer/inner")
    for name, content in files.items():
        (machine / name).write_bytes(content)
    usable = read_memory(machine).usable_bytes
    assert usable is None or usable >= 0


def test_a_directory_where_a_file_belongs_is_nothing_known(machine: Path) -> None:
    (machine / "proc/meminfo").unlink()
    (machine / "proc/meminfo").mkdir()
    (machine / "sys/fs/cgroup/outer/memory.max").mkdir()
    assert read_memory(machine) == Memory(None, None)


def test_lines_that_are_no_mounts_are_passed_over() -> None:
    assert [mount.point for mount in mounts(f"\nno mount - at all\n{V1}x y\n")] == [Path("/sys/fs/cgroup/memory")]


def test_this_machine_has_memory() -> None:
    found = read_memory()
    assert found.total_bytes is not None
    assert found.usable_bytes is not None
    assert 0 < found.usable_bytes <= found.total_bytes


def test_a_real_group_leaves_what_is_not_used_of_its_limit() -> None:
    code = "from weightpager.machine.memory import read_memory as r; m = r(); print(m.limit_bytes, m.left_bytes)"
    run = run_limited([sys.executable, "-c", code], memory=256 * MIB)
    if run.memory.in_force is None:
        pytest.skip(run.memory.note)
    limit, left = map(int, run.stdout.split())
    assert limit == run.memory.in_force
    assert 128 * MIB < left < limit
