"""Sizes in bytes: read from text, and shown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from weightpager.errors import ConfigError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)")


def parse_size(size: str | int, where: str = "size") -> int:
    """Bytes in ``"512MiB"``, ``"1.5 GB"`` or a plain number.

    Raises:
        ConfigError: the text is no size, or the size is not positive; says ``where`` it was stated.
    """
    match = _SIZE.fullmatch(str(size).strip())
    if match is None or match[2].upper() not in _UNITS:
        expected = "expected a number with a unit, such as 512MiB or 1.5GB"
        raise ConfigError(f"{where}: {expected}, got {size!r}{_meant(match)}")
    count = int(Fraction(match[1]) * _UNITS[match[2].upper()])
    if count <= 0:
        raise ConfigError(f"{where}: expected more than zero bytes, got {size!r}")
    return count


def _meant(match: re.Match[str] | None) -> str:
    """What may be meant by a unit that lacks its B: ``4M`` is 4,000,000 bytes to some programs, 4,194,304 to others."""
    prefix = "" if match is None else match[2].upper().removesuffix("I")
    if match is None or prefix not in ("K", "M", "G"):
        return ""
    binary, decimal = (f"{match[1]}{prefix}{unit}" for unit in ("iB", "B"))
    return f"; write {binary} ({_UNITS[prefix + 'IB']:,} bytes each) or {decimal} ({_UNITS[prefix + 'B']:,})"


def parse_bandwidth(text: str) -> float:
    """Bytes per second in ``"300MB/s"``.

    Raises:
        ConfigError: the text is no bandwidth, or has no unit: nobody means bytes.
    """
    size = text.strip().removesuffix("/s")
    try:
        count = parse_size(size)
    except ConfigError:
        count = None
    if count is None or not size.strip()[-1].isalpha():
        raise ConfigError(f"bandwidth: expected a size per second with a unit, such as 300MB/s, got {text!r}")
    return float(count)


def stated_size(size: str | int | None, where: str) -> int | None:
    """Bytes of a setting; None if it isn't stated. Errors are those of `parse_size`."""
    return None if size is None else parse_size(size, where)


def format_size(count: float) -> str:
    """A size for people, rounded to the nearest: ``format_size(67108864) == "64.0 MiB"``. Not for limits."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_enough(count: float) -> str:
    """A needed size, rounded up: `parse_size` makes ``count`` bytes or more of it."""
    return _in_tenths(math.ceil(count), lambda whole, unit: -(-10 * whole // unit))


def format_room(count: float) -> str:
    """An available size, rounded down: `parse_size` makes ``count`` bytes or less of it."""
    # `parse_size` rounds down to bytes: the next tenth must give a byte more. So a size is shown as it was stated.
    return _in_tenths(math.floor(count), lambda whole, unit: -(-10 * (whole + 1) // unit) - 1)


def _in_tenths(whole: int, tenths: Callable[[int, int], int]) -> str:
    """Bytes in the unit that gives a number of 1 to 1024; ``tenths`` maps bytes and a unit's bytes to tenths of it."""
    if whole < 1024:
        return f"{whole} B"
    counts = {unit: tenths(whole, _UNITS[unit.upper()]) for unit in ("KiB", "MiB", "GiB")}
    unit = next((unit for unit, count in counts.items() if count < 10240), "GiB")
    return f"{counts[unit] // 10}.{counts[unit] % 10} {unit}"
