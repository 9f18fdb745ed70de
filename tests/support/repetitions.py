"""How often a random test draws."""

from __future__ import annotations

from hypothesis import settings


def times(full: int) -> int:
    """So often where nothing is left out, or the slow tests run alone; else fewer, as properties are tried on fewer
    examples there.
    """
    return max(1, full * settings().max_examples // 100)
