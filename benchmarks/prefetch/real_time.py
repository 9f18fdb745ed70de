"""A trace in real time, on storage held to a stated speed: an engine, and what people do instead."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine
from weightpager.runtime.planning.pages import PrefetchCounts
from weightpager.trace_file import Visit
from weightpager_lab.contest.rivals.methods import method
from weightpager_lab.contest.rivals.rival import Pace, Setting, slow_engines

Floats = npt.NDArray[np.float64]

RIVALS: Mapping[str, str] = {
    "whole sparse checkpoints": "sparse_whole",
    "their paged weights only": "sparse_strict",
    "LRU of whole tasks": "sparse_lru",
}
"""Policy of a row → method of a contest."""


def of_engine(
    bundle: Bundle, visits: Sequence[Visit], budget: int, bandwidth: float, *, prefetch: bool
) -> tuple[Floats, PrefetchCounts]:
    """Seconds that each switch but the first waits, and what was prefetched."""
    config = EngineConfig(budget, prefetch=prefetch)
    with slow_engines(bandwidth), Engine(bundle, config) as engine:
        for name in bundle.tasks:
            engine.module(name)
        waited = _replayed(engine.activate, visits)
        ahead = engine.report().prefetch
    return waited, PrefetchCounts() if ahead is None else ahead.pages


def of_rival(
    policy: str, bundle: Bundle, visits: Sequence[Visit], budget: int, bandwidth: float, folder: Path
) -> Floats:
    """Seconds that each switch but the first waits where whole tasks are loaded.

    Args:
        policy: one of `RIVALS`.
        bundle: of the tasks.
        visits: oldest first.
        budget: bytes of weights, for the one that keeps several tasks.
        bandwidth: of the storage, in bytes a second.
        folder: that holds the tasks' sparse checkpoints.
    """
    setting = Setting(bundle, tuple(bundle.tasks), folder, budget, EngineConfig().io_threads, Pace(bandwidth))
    rival = method(RIVALS[policy]).make(setting)
    try:
        return _replayed(rival.switch, visits)
    finally:
        rival.close()


def _replayed(switch: Callable[[str], object], visits: Sequence[Visit]) -> Floats:
    """A task runs, from when it is there, for as long as lies between its visit's start and the next one's."""
    waited = []
    for visit, following in zip(visits, [*visits[1:], visits[-1]], strict=True):
        start = time.perf_counter()
        switch(visit.task)
        waited.append(time.perf_counter() - start)
        time.sleep(max(0.0, following.start - visit.start))
    return np.array(waited[1:])
