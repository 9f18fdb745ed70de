"""The memory that this process holds, and the most that it has held since it last asked, as Linux counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path

from weightpager.machine.memory import size_field

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
