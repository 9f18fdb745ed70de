"""Cores that a process may use, under the quotas of control groups; garbage is no quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weightpager.machine import processor
from weightpager.machine.processor import core_quota, usable_cores

MOUNTS = {
    1: "30 29 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n",
    2: "30 29 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw\n",
}
OWN = {1: "4:cpu,cpuacct:/outer/inner\n", 2: "0::/outer/inner\n"}


def machine(root: Path, version: int) -> Path:
    """A root with this process two groups down; the directory of the outer one."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(MOUNTS[version])
    (root / "proc/self/cgroup").write_text(OWN[version])
    top = root / "sys/fs/cgroup" / ("cpu" if version == 1 else "")
    (top / "outer/inner").mkdir(parents=True)
    (top / "cgroup.controllers").write_text("cpuset cpu memory\n")
    return top / "outer"


def limit(group: Path, version: int, quota: str, period: str = "100000") -> None:
    if version == 2:
        (group / "cpu.max").write_text(f"{quota} {period}\n")
    else:
        (group / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        (group / "cpu.cfs_period_us").write_text(f"{period}\n")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("quota", "worth"), [("200000", 2), ("150000", 2), ("50000", 1), ("200001", 3)])
def test_a_quota_is_worth_cores_rounded_up(tmp_path: Path, version: int, quota: str, worth: int) -> None:
    limit(machine(tmp_path, version) / "inner", version, quota)
    assert core_quota(tmp_path) == worth


@pytest.mark.parametrize(("version", "none"), [(1, "-1"), (2, "max")])
def test_the_least_quota_of_the_groups_around_counts(tmp_path: Path, version: int, none: str) -> None:
    outer = machine(tmp_path, version)
    limit(outer / "inner", version, none)
    limit(outer, version, "300000")
    assert core_quota(tmp_path) == 3


@pytest.mark.parametrize("quota", ["", "max", "0", "x", "1 2", "-5", "9" * 5000])
def test_what_makes_no_sense_is_no_quota(tmp_path: Path, quota: str) -> None:
    limit(machine(tmp_path, 2), 2, quota)
    assert core_quota(tmp_path) is None


def test_a_period_of_nothing_is_no_quota(tmp_path: Path) -> None:
    limit(machine(tmp_path, 2), 2, "100000", "0")
    assert core_quota(tmp_path) is None


def test_a_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert core_quota(tmp_path) is None


@pytest.mark.parametrize(("quota", "usable"), [(2, 2), (None, 32), (64, 32)])
def test_a_quota_that_is_worth_fewer_cores_counts(
    monkeypatch: pytest.MonkeyPatch, quota: int | None, usable: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setattr(processor, "core_quota", lambda: quota)
    assert usable_cores() == usable
