"""A trace that punishes learning."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from weightpager.lab.traces.trace import Trace, check_size
from weightpager.lab.traces.uniform import TASKS
from weightpager.trace_file import Visit

SUCCESSORS = 4
FLIP = 100
"""Switches between day and night."""


def adversarial(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """By day a task has four successors, by night four others; what followed it most often before never comes.

    Of the four it draws one that isn't the commonest yet (of equals, the first). So the successor that counts make the
    likeliest is always wrong, and what was learnt by day is useless by night. ``entropy`` is that of one who knows all
    this: ``log2 3``.
    """
    check_size(switches, dwell)
    draws = np.random.default_rng(seed)
    counts: Counter[tuple[int, int]] = Counter()
    tasks, starts = [0], [0.0]
    for step in range(switches):
        task, candidates = tasks[-1], successors(tasks[-1], night=step // FLIP % 2 == 1)
        seen = {other: counts[task, other] for other in candidates}
        candidates.remove(max(candidates, key=seen.__getitem__))
        following = int(draws.choice(candidates))
        counts[task, following] += 1
        tasks.append(following)
        starts.append(starts[-1] + draws.lognormal(math.log(dwell) - 0.125, 0.5))
    visits = tuple(Visit(TASKS[task], float(start)) for task, start in zip(tasks, starts, strict=True))
    return Trace("adversarial", TASKS, visits, math.log2(SUCCESSORS - 1))


def successors(task: int, *, night: bool) -> list[int]:
    """What may follow a task by day, and what by night."""
    first = 1 + SUCCESSORS * night
    return [(task + step) % len(TASKS) for step in range(first, first + SUCCESSORS)]
