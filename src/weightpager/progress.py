"""How far long work has come, as it is told to whoever looks on."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Told (stage, steps done, steps in all). ``partial(progress, stage)`` is the `Steps` of one stage."""

Steps = Callable[[int, int], None]
"""Told (steps done, steps in all) of work that is one stage."""


def silent(*_told: object) -> None:
    """Take what a `Progress` or `Steps` is told where nobody looks on."""
