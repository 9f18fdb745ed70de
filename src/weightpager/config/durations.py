"""Durations: how long one may be, how it is read from text, and how it is shown."""

from __future__ import annotations

import re

from weightpager.errors import ConfigError

LONGEST = 1e9
"""Seconds of a time that may be stated, some thirty years. Clocks and locks refuse times that are ten times as long."""


_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_SHORT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*([a-zµ]+)")
_LONGEST_READ = 60.0


def parse_latency(text: str, where: str = "latency") -> float:
    """Seconds in ``"0.3ms"``, ``"120us"`` or ``"0.001s"``; zero is one, too.

    Raises:
        ConfigError: the text is no time with a unit, or above a minute; says ``where`` it was stated.
    """
    match = _SHORT.fullmatch(text.strip())
    seconds = float(match[1]) * _UNITS[match[2]] if match is not None and match[2] in _UNITS else _LONGEST_READ + 1
    if seconds > _LONGEST_READ:
        raise ConfigError(f"{where}: expected a time with a unit, such as 0.3ms or 120us, got {text!r}")
    return seconds


def format_duration(seconds: float) -> str:
    """Long times as people read them: ``format_duration(6000) == "1 h 40 min"``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min"
