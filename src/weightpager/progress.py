"""How far long work has come, as it is told to whoever looks on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Progress = Callable[[str, int, int], None]
"""A function that is told (stage, steps done, steps in all). ``partial(progress, stage)`` is the `StepProgress` of a
stage."""

StepProgress = Callable[[int, int], None]
"""Told (steps done, steps in all) of work that is one stage."""


_Item = TypeVar("_Item")


def silent(*_told: object) -> None:
    """Take what a `Progress` or `StepProgress` is told where nobody looks on."""


def prefixed(progress: Progress, name: str) -> Progress:
    """Tells of stages by names that begin so."""
    return lambda stage, done, total: progress(f"{name}: {stage}", done, total)


def counted(items: Sequence[_Item], progress: StepProgress) -> Iterator[_Item]:
    """Items one after the other; each is told of once the next one is asked for."""
    for done, item in enumerate(items, 1):
        yield item
        progress(done, len(items))
