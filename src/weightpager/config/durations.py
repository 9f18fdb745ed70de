"""Durations: how long one may be, and how it is shown."""

from __future__ import annotations

LONGEST = 1e9
"""Seconds of a time that may be stated, some thirty years. Clocks and locks refuse times that are ten times as long."""


def format_duration(seconds: float) -> str:
    """Long times as people read them: ``format_duration(6000) == "1 h 40 min"``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min"
