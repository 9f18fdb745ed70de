"""What Linux says of this process: its memory, and what it got from storage."""

from __future__ import annotations

import mmap
from pathlib import Path

from weightpager.machine.memory import size_field

_ROLLUP = {"resident": "Rss", "proportional": "Pss", "anonymous": "Anonymous"}


def memory_sizes(rollup: Path = Path("/proc/self/smaps_rollup")) -> dict[str, int]:
    """Bytes in memory by the names of `found.ProcessMemory`: resident, proportional and anonymous."""
    text = rollup.read_text()
    return {name: size_field(text, key) or 0 for name, key in _ROLLUP.items()}


def resident_bytes(statm: Path = Path("/proc/self/statm")) -> int:
    """Bytes of this process in memory; cheaper than `memory_sizes`."""
    return int(statm.read_text().split()[1]) * mmap.PAGESIZE


def bytes_from_storage(io: Path = Path("/proc/self/io")) -> int:
    """Bytes that this process has had read from storage so far, by direct reads, buffered ones and mappings."""
    for line in io.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "read_bytes":
            return int(value)
    return 0
