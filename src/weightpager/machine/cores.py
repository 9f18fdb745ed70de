"""Cores: how many of them this process may use."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from weightpager.machine.hierarchy import own_hierarchy, whole_number, words


def usable_cores() -> int:
    """The cores that this process may run on, or as many as its quota of processor time is worth if they are fewer."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, core_quota() or allowed)


@cache
def core_quota(root: Path = Path("/")) -> int | None:
    """Cores that the least quota of this process's control group and those around it is worth, rounded up.

    None if there is no quota. Read once: files are many, and the count is asked for at every computation.

    Args:
        root: the directory that has ``proc``, and in which the paths of ``mountinfo`` begin.
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
