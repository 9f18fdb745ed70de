"""Trials: which of several ways to compute something is the fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable


def least_seconds(*calls: Callable[[], object], times: int) -> list[float]:
    """The least seconds that each call takes, of so many ``times``.

    The calls take turns, so that other work on the machine slows all of them. Before these turns there is one more,
    which sets things up and doesn't count.
    """
    turns = [[_seconds(call) for call in calls] for _ in range(1 + times)][1:]
    return [min(column) for column in zip(*turns, strict=True)]


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
