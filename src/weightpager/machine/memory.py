"""Memory: how much there is, how much is free, and how much of it this process may have."""

from __future__ import annotations

import ctypes
import math
import mmap
from dataclasses import dataclass
from pathlib import Path

from weightpager.machine.processor import Hierarchy, own_hierarchy, text_of, whole_number

_LIMIT = ("memory.limit_in_bytes", "memory.max")
_USAGE = ("memory.usage_in_bytes", "memory.current")
_CACHES = (("total_inactive_file", "total_active_file"), ("inactive_file", "active_file", "slab_reclaimable"))
"""Files and fields of version 1 and of version 2."""


def slots_together(size: int) -> int:
    """After how many slots of so many bytes one begins at a machine's page again."""
    return math.lcm(size, mmap.PAGESIZE) // size


@dataclass(frozen=True)
class Memory:
    """Sizes in bytes; None where unknown.

    Attributes:
        available_bytes: bytes that programs can get without swapping.
        limit_bytes: the limit of this process's control group and those around it; None if no lower than the total.
        left_bytes: bytes that the processes in these groups may take before the first limit is reached. Page cache
            counts as free there, as it does in `available_bytes`: it is given up when memory is short.
    """

    total_bytes: int | None
    available_bytes: int | None
    limit_bytes: int | None = None
    left_bytes: int | None = None

    @property
    def usable_bytes(self) -> int | None:
        """What this process can get: what is available, as far as the limits allow."""
        known = [s for s in (self.available_bytes, self.limit_bytes, self.left_bytes) if s is not None]
        return min(known, default=None)


def read_memory(root: Path = Path("/")) -> Memory:
    """This machine's memory, as this process sees it; None for whatever can't be read or makes no sense."""
    total, available = (size_field(text_of(root / "proc/meminfo"), name) for name in ("MemTotal", "MemAvailable"))
    hierarchy = own_hierarchy("memory", root)
    if hierarchy is None:
        return Memory(total, available)
    limit = group_limit(hierarchy)
    lower = limit is not None and (total is None or limit < total)
    return Memory(total, available, limit if lower else None, group_left(hierarchy, total) if lower else None)


def group_limit(hierarchy: Hierarchy) -> int | None:
    """The tightest limit on a group and those around it, in bytes; None if there is none."""
    if hierarchy.version == 1:
        return _field(hierarchy.own / "memory.stat", "hierarchical_memory_limit")
    limits = [whole_number(text_of(group / _LIMIT[1])) for group in hierarchy.groups()]
    return min((limit for limit in limits if limit is not None), default=None)


def group_left(hierarchy: Hierarchy, total: int | None = None) -> int | None:
    """Bytes that a group may take before its own limit or one around it is reached; None if none is known.

    Limits that aren't lower than the machine's ``total`` are none.
    """
    version = hierarchy.version - 1
    left = []
    for group in hierarchy.groups():
        limit, used = (whole_number(text_of(group / names[version])) for names in (_LIMIT, _USAGE))
        if limit is None or used is None or (total is not None and limit >= total):
            continue
        cache = sum(_field(group / "memory.stat", name) or 0 for name in _CACHES[version])
        left.append(max(0, limit - max(0, used - cache)))
    return min(left, default=None)


def size_field(text: str, name: str) -> int | None:
    """Bytes behind a name in a text of ``/proc`` such as that of ``meminfo``, which counts in KiB."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            kib = whole_number(value.strip().partition(" ")[0])
            return None if kib is None else kib << 10
    return None


def _field(file: Path, name: str) -> int | None:
    """The number behind a name at the start of a line."""
    for line in text_of(file).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return whole_number(value)
    return None


_SELF = Path("/proc/self")


def give_back() -> None:
    """Hand free memory back to the system, where the C library can: glibc keeps much of what small blocks took."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def forget_peak(process: Path = _SELF) -> bool:
    """Count from what is held now on; False where the system doesn't count, or doesn't let us."""
    try:
        (process / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_memory(process: Path = _SELF) -> int | None:
    """Most resident bytes since `forget_peak`, shared libraries included; None where the system doesn't say."""
    return _size(process, "VmHWM")


def resident_memory(process: Path = _SELF) -> int | None:
    """Resident bytes now, shared libraries included; None where the system doesn't say."""
    return _size(process, "VmRSS")


def own_memory(process: Path = _SELF) -> int | None:
    """Resident bytes now that lie in no file, so that nobody else can have them; None where the system doesn't say."""
    return _size(process, "RssAnon")


def _size(process: Path, field: str) -> int | None:
    try:
        return size_field((process / "status").read_text(errors="replace"), field)
    except OSError:
        return None
