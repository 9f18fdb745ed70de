"""Settings: parsed once, frozen, unknown or contradictory ones refused. No torch."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from weightpager.errors import ConfigError, shown

LONGEST = 1e9
"""Seconds of a time that may be stated, some thirty years. Clocks and locks refuse times that are ten times as long."""


_TIME = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zµ]*)")
_SHORT = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_LONG = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_LONGEST_READ = 60.0


def parse_latency(text: str, where: str = "latency") -> float:
    """Seconds in ``"0.3ms"``, ``"120us"`` or ``"0.001s"``; zero is one, too.

    Raises:
        ConfigError: the text is no time with a unit, or above a minute; says ``where`` it was stated.
    """
    seconds = _seconds(text, _SHORT)
    if seconds is None or seconds > _LONGEST_READ:
        raise ConfigError(f"{where}: expected a time with a unit, such as 0.3ms or 120us, got {text!r}")
    return seconds


def parse_duration(text: str, where: str) -> float:
    """Seconds in ``"5m"``, ``"90s"``, ``"1h"`` or ``"300"``. Raises `ConfigError`, which says ``where``, of others."""
    seconds = _seconds(text, _LONG)
    if seconds is None or not 0 < seconds <= LONGEST:
        raise ConfigError(f"{where}: expected a time, such as 5m, 90s or 1h, got {text!r}")
    return seconds


def _seconds(text: str, units: Mapping[str, float]) -> float | None:
    """Seconds in a number with one of these units; None if it is something else."""
    match = _TIME.fullmatch(text.strip())
    return None if match is None or match[2] not in units else float(match[1]) * units[match[2]]


def format_duration(seconds: float) -> str:
    """Long times as people read them: ``format_duration(6000) == "1 h 40 min"``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min"


BACKENDS = ("auto", "native", "torch")
"""What may run tasks."""


def check_backend(name: str, where: str = "backend") -> None:
    """See that a backend is one that may be asked for.

    Raises:
        ConfigError: it isn't; says where it was named.
    """
    if name not in BACKENDS:
        raise ConfigError(f"{where}: expected one of {', '.join(BACKENDS)}, got {name!r}")


@dataclass(frozen=True)
class EngineConfig:
    """How an engine runs.

    Attributes:
        budget: bytes for weights in memory: arena, resident and private parameters, block tables, KV reserve, and
            staging on a GPU. None takes what the whole bundle needs.
        device: where the arena lives and tasks run: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``. Whether it is there is found
            out when an engine opens.
        dtype: what tasks compute in: ``"bfloat16"``, or ``"auto"`` for what the bundle's parameters are in.
        io_threads: reads in flight while pages are loaded.
        kv_reserve: bytes of the budget that are left to KV caches.
        prefix_cache: bytes of the budget for keys and values of prompts' beginnings, which aren't read again.
        rows: bytes of the budget for rows of tables that come on demand; None for what all pages leave.
        in_share: whether the budget is a share of one that several bundles have: rows are read when they are first
            looked up, the most used ones not at once, and nothing is said where tasks don't fit together.
        real_time: tasks that are loaded when the engine opens, before any other, and never leave memory.
        read_timeout: seconds without any page after which a load fails.
        prefetch: whether to prefetch what the next task probably needs; or a `Planner`, a function that tells the next
            task from the visits so far, by name with a weight each.
        history: file that keeps which task ran when, across restarts; None keeps it in memory only.
        backend: what runs tasks: ``"native"``, ``"torch"``, or ``"auto"`` for what ``WEIGHTPAGER_BACKEND`` names, or
            what suits where that isn't set.
    """

    budget: int | None = None
    device: str = "cpu"
    dtype: str = "auto"
    io_threads: int = 8
    kv_reserve: int = 0
    prefix_cache: int = 0
    rows: int | None = None
    in_share: bool = False
    real_time: tuple[str, ...] = ()
    read_timeout: float = 30.0
    prefetch: bool | Callable[..., Mapping[str, float]] = False
    history: Path | None = None
    backend: str = "auto"

    @classmethod
    def stated(
        cls,
        *,
        budget: str | int | None,
        kv_reserve: str | int,
        prefix_cache: str | int,
        real_time: Sequence[str],
        history: str | Path | None,
        rows: str | int | None = None,
        **others: Any,
    ) -> EngineConfig:
        """The settings that callers state: sizes as texts or bytes, names in a list, paths as texts.

        Raises:
            ConfigError: one of them is wrong.
        """
        if isinstance(real_time, str):
            raise ConfigError(f"real_time: expected names of tasks, such as [{real_time!r}], got a text")
        return cls(
            budget=stated_size(budget, "budget"),
            kv_reserve=0 if kv_reserve == 0 else parse_size(kv_reserve, "kv_reserve"),
            prefix_cache=0 if prefix_cache == 0 else parse_size(prefix_cache, "prefix_cache"),
            real_time=tuple(real_time),
            history=None if history is None else Path(history),
            rows=stated_size(rows, "rows"),
            **others,
        )

    def __post_init__(self) -> None:
        check_backend(self.backend)
        if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", self.device):
            raise ConfigError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        if self.dtype not in ("auto", "bfloat16"):
            raise ConfigError(f"dtype: expected 'auto' or 'bfloat16', got {self.dtype!r}")
        if self.budget is not None and self.budget <= 0:
            raise ConfigError(f"budget: expected more than zero bytes, got {self.budget}")
        if not 1 <= self.io_threads <= 64:
            raise ConfigError(f"io_threads: expected 1 to 64, got {self.io_threads}")
        if self.kv_reserve < 0:
            raise ConfigError(f"kv_reserve: expected zero bytes or more, got {self.kv_reserve}")
        if self.prefix_cache < 0:
            raise ConfigError(f"prefix_cache: expected zero bytes or more, got {self.prefix_cache}")
        if self.rows is not None and self.rows <= 0:
            raise ConfigError(f"rows: expected more than zero bytes, got {self.rows}")
        if not 0 < self.read_timeout <= threading.TIMEOUT_MAX:
            raise ConfigError(f"read_timeout: expected a number of seconds above zero, got {self.read_timeout}")
        if not (isinstance(self.prefetch, bool) or callable(self.prefetch)):
            raise ConfigError(f"prefetch: expected True, False or a function, got {type(self.prefetch).__name__}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number; NaN is one, too."""
    return isinstance(value, Real) and not isinstance(value, bool)


def stated_count(value: Any, where: str) -> int:
    """How many there are to be. Raises `ConfigError` of anything but a whole number from 1 up."""
    if not is_whole(value):
        raise ConfigError(f"{where}: expected a whole number, found {shown(value)}")
    if value < 1:
        raise ConfigError(f"{where}: expected at least 1, found {shown(value)}")
    return int(value)


_SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SIZE = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)")


def parse_size(size: str | int, where: str = "size") -> int:
    """Bytes in ``"512MiB"``, ``"1.5 GB"`` or a plain number. Raises `ConfigError`, which says ``where``, otherwise."""
    match = _SIZE.fullmatch(str(size).strip())
    if match is None or match[2].upper() not in _SIZES:
        expected = "expected a number with a unit, such as 512MiB or 1.5GB"
        raise ConfigError(f"{where}: {expected}, got {size!r}{_meant(match)}")
    count = int(Fraction(match[1]) * _SIZES[match[2].upper()])
    if count <= 0:
        raise ConfigError(f"{where}: expected more than zero bytes, got {size!r}")
    return count


def _meant(match: re.Match[str] | None) -> str:
    """What may be meant by a unit that lacks its B: ``4M`` is 4,000,000 bytes to some programs, 4,194,304 to others."""
    prefix = "" if match is None else match[2].upper().removesuffix("I")
    if match is None or prefix not in ("K", "M", "G"):
        return ""
    binary, decimal = (f"{match[1]}{prefix}{unit}" for unit in ("iB", "B"))
    return f"; write {binary} ({_SIZES[prefix + 'IB']:,} bytes each) or {decimal} ({_SIZES[prefix + 'B']:,})"


def parse_bandwidth(text: str) -> float:
    """Bytes per second in ``"300MB/s"``. Raises `ConfigError` without a unit: nobody means bytes."""
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
    counts = {unit: tenths(whole, _SIZES[unit.upper()]) for unit in ("KiB", "MiB", "GiB")}
    unit = next((unit for unit, count in counts.items() if count < 10240), "GiB")
    return f"{counts[unit] // 10}.{counts[unit] % 10} {unit}"


_CACHE_LIMIT = 8 << 30


def cache_dir() -> Path:
    """Where downloads, demo results and what compiles share lie: ``WEIGHTPAGER_CACHE``, else XDG's cache folder.

    Raises:
        ConfigError: it is in a home directory that isn't known.
    """
    stated = os.environ.get("WEIGHTPAGER_CACHE")
    try:
        if stated:
            return Path(stated).expanduser()
        return (xdg_folder("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "weightpager"
    except RuntimeError as error:
        found = f"found no home directory for {stated or '~/.cache'}; name one that begins with '/'"
        raise ConfigError(f"WEIGHTPAGER_CACHE: expected a directory, {found}") from error


def xdg_folder(variable: str) -> Path | None:
    """The folder that a variable of XDG's names; None where it names none. A relative one counts as none, says XDG."""
    folder = Path(os.environ.get(variable, ""))
    return folder if folder.is_absolute() else None


def cache_limit() -> int:
    """Bytes that compiles may keep in `cache_dir`: ``WEIGHTPAGER_CACHE_LIMIT``, where 0 is none; else 8 GiB.

    Raises:
        ConfigError: the variable is no size.
    """
    stated = (os.environ.get("WEIGHTPAGER_CACHE_LIMIT") or "").strip()
    if stated == "0":
        return 0
    try:
        return parse_size(stated) if stated else _CACHE_LIMIT
    except ConfigError as error:
        raise ConfigError(f"WEIGHTPAGER_CACHE_LIMIT: {error}, or 0 to keep nothing") from None


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogates, which JSON and command lines can bring and no tokenizer or file takes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


__all__ = [
    "LONGEST",
    "EngineConfig",
    "cache_dir",
    "cache_limit",
    "check_backend",
    "format_duration",
    "format_enough",
    "format_room",
    "format_size",
    "is_number",
    "is_unicode",
    "is_whole",
    "parse_bandwidth",
    "parse_latency",
    "parse_size",
    "stated_count",
    "stated_size",
    "xdg_folder",
]
