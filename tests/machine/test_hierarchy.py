"""Where control groups are mounted, and which of them this process is in."""

from __future__ import annotations

from pathlib import Path

import pytest

from weightpager.machine.processor import Hierarchy, find_hierarchy
from weightpager.machine.storage import Mount

OWN_V1 = "8:memory,hugetlb:/user/1\n7:blkio:/\n0::/\n"
OWN_V2 = "0::/system.slice/run.scope\n"


def mount(kind: str, point: Path, *options: str, root: str = "/") -> Mount:
    return Mount(1, root, point, kind, kind, ("rw", *options))


def tree(top: Path, group: str, *, controllers: str = "") -> Path:
    """A group's directory in a fake hierarchy, with the file in which version 2 names its controllers."""
    directory = top / group
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.controllers").write_text(controllers)
    return directory


def test_version_1_is_preferred_where_the_controller_is_mounted(tmp_path: Path) -> None:
    own = tree(tmp_path / "memory", "user/1")
    tree(tmp_path, "unified", controllers="memory io")
    table = [mount("cgroup2", tmp_path / "unified"), mount("cgroup", tmp_path / "memory", "memory", "hugetlb")]
    assert find_hierarchy("memory", table, OWN_V1) == Hierarchy(1, tmp_path / "memory", own)
    assert find_hierarchy("blkio", table, OWN_V1) == Hierarchy(2, tmp_path / "unified", tmp_path / "unified")


def test_version_2_needs_its_controller(tmp_path: Path) -> None:
    tree(tmp_path, "", controllers="memory")
    own = tree(tmp_path, "system.slice/run.scope")
    table = [mount("tmpfs", tmp_path), mount("cgroup2", tmp_path)]
    assert find_hierarchy("memory", table, OWN_V2) == Hierarchy(2, tmp_path, own)
    assert find_hierarchy("blkio", table, OWN_V2) is None
    assert find_hierarchy("memory", [], OWN_V2) is None


def test_a_container_sees_its_group_below_the_mount(tmp_path: Path) -> None:
    own = tree(tmp_path, "inner")
    table = [mount("cgroup", tmp_path, "memory", root="/docker/abc")]
    inside = find_hierarchy("memory", table, "8:memory:/docker/abc/inner\n")
    outside = find_hierarchy("memory", table, "8:memory:/elsewhere\n")
    assert inside == Hierarchy(1, tmp_path, own)
    assert outside == Hierarchy(1, tmp_path, tmp_path)


@pytest.mark.parametrize(
    "own", ["", "8", "8:memory", "8:memory:", "::", "8:memory:\0", "\ufffd:memory:x", "8:memory:/no/such"]
)
def test_lines_that_name_no_group_that_is_in_sight_leave_the_top(tmp_path: Path, own: str) -> None:
    assert find_hierarchy("memory", [mount("cgroup", tmp_path, "memory")], own) == Hierarchy(1, tmp_path, tmp_path)


def test_a_group_that_cannot_be_looked_at_leaves_the_top(tmp_path: Path) -> None:
    own = "8:memory:/" + "a" * 300  # a name that stat() refuses, as it does a directory that others may not enter
    assert find_hierarchy("memory", [mount("cgroup", tmp_path, "memory")], own) == Hierarchy(1, tmp_path, tmp_path)


def test_a_group_lies_in_those_around_it(tmp_path: Path) -> None:
    assert Hierarchy(2, tmp_path, tmp_path / "a/b").groups() == [tmp_path / "a/b", tmp_path / "a", tmp_path]
    assert Hierarchy(1, tmp_path, tmp_path).groups() == [tmp_path]
