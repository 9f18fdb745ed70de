"""Memory: how much there is, how much is free, and how much of it this process may have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from weightpager.bench.control_group import Hierarchy, find_hierarchy
from weightpager.bench.limits import tightest
from weightpager.bench.mounts import mounts


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes; None where unknown.

    Attributes:
        total_bytes: of the machine.
        available_bytes: that programs can get without swapping.
        limit_bytes: of this process's control group and those around it; None if it is no lower than the total.
    """

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None

    @property
    def usable_bytes(self) -> int | None:
        """What is available, but no more than the limit."""
        known = [size for size in (self.available_bytes, self.limit_bytes) if size is not None]
        return min(known, default=None)


def read_memory_sizes() -> Memory:
    """This machine's memory, as this process sees it."""
    return parse_memory(_text(Path("/proc/meminfo")), _own_limit())


def parse_memory(meminfo: str, limit: int | None) -> Memory:
    """The memory that the text of ``/proc/meminfo`` describes, under a limit in bytes."""
    sizes = {
        key: int(value.split()[0]) << 10 for key, _, value in (line.partition(":") for line in meminfo.splitlines())
    }
    total = sizes.get("MemTotal")
    lower = limit is not None and (total is None or limit < total)
    return Memory(total, sizes.get("MemAvailable"), limit if lower else None)


def group_limit(hierarchy: Hierarchy) -> int | None:
    """The tightest limit on a group and those around it, in bytes; None if there is none."""
    if hierarchy.version == 2:
        return tightest(hierarchy.own, hierarchy.top)
    for line in _text(hierarchy.own / "memory.stat").splitlines():
        name, _, value = line.partition(" ")
        if name == "hierarchical_memory_limit":
            return int(value)
    return None


def _own_limit() -> int | None:
    try:
        hierarchy = find_hierarchy("memory", mounts(), Path("/proc/self/cgroup").read_text())
    except OSError:  # a system without control groups
        return None
    return None if hierarchy is None else group_limit(hierarchy)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
