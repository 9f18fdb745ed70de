"""Durations, for people."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Long times as people read them: ``format_duration(6000) == "1 h 40 min"``."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes else "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min"
