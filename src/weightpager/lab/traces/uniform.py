"""A trace of which nothing can be learnt."""

from __future__ import annotations

from weightpager.lab.traces.chain import Chain
from weightpager.lab.traces.trace import Trace

TASKS = tuple(f"task_{number:02}" for number in range(16))
CHAIN = Chain({task: {other: 1.0 for other in TASKS if other != task} for task in TASKS})


def random(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Every other task is as likely as the next, always."""
    return CHAIN.trace("random", switches, dwell, seed)
