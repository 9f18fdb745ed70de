"""Made traces: an assistant, a robot, and one that no predictor can foresee."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from weightpager.trace_file import Visit
from weightpager_lab.traces.trace import TASKS, Chain, Trace, check_size

ASSISTANT = Chain(
    {
        "wake_word": {"transcribe": 1.0},
        "transcribe": {"intent": 0.9, "translate": 0.1},
        "intent": {
            "music": 0.26,
            "weather": 0.18,
            "mail": 0.16,
            "search": 0.14,
            "calendar": 0.12,
            "lights": 0.08,
            "chat": 0.06,
        },
        "music": {"wake_word": 0.85, "speak": 0.15},
        "weather": {"speak": 0.92, "calendar": 0.08},
        "mail": {"summarise": 0.6, "reply": 0.2, "spam": 0.2},
        "search": {"rank": 0.9, "speak": 0.1},
        "calendar": {"speak": 0.6, "mail": 0.2, "route": 0.2},
        "lights": {"wake_word": 1.0},
        "chat": {"speak": 1.0},
        "translate": {"speak": 1.0},
        "summarise": {"speak": 0.8, "reply": 0.2},
        "reply": {"grammar": 0.8, "speak": 0.2},
        "grammar": {"speak": 0.6, "mail": 0.4},
        "spam": {"mail": 0.5, "speak": 0.5},
        "rank": {"summarise": 0.7, "speak": 0.3},
        "route": {"speak": 0.8, "calendar": 0.2},
        "speak": {"wake_word": 0.55, "transcribe": 0.35, "chat": 0.1},
    },
    {"wake_word": 6.0, "music": 4.0, "intent": 0.3, ("speak", "wake_word"): 3.0},
)


def assistant(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Chains of tasks that begin with a wake word or a follow-up question; the intent is what is hard to foresee."""
    return ASSISTANT.trace("assistant", switches, dwell, seed)


CYCLE = (
    "localise",
    "map",
    "plan",
    "navigate",
    "detect",
    "segment",
    "grasp_pose",
    "grasp",
    "verify",
    "carry",
    "place",
    "report",
)
EXCEPTIONS = {"obstacle": 0.1, "person": 0.05, "listen": 0.04, "recover": 0.03}
AGAIN = 0.1
"""How often an exception leads back to the step that it interrupted, not to the next one."""


def _rows() -> dict[str, dict[str, float]]:
    rows: dict[str, dict[str, float]] = {}
    for number, step in enumerate(CYCLE):
        following = CYCLE[(number + 1) % len(CYCLE)]
        rows[step] = {following: 1.0 - sum(EXCEPTIONS.values())}
        for exception, chance in EXCEPTIONS.items():
            rows[step][f"{exception}/{step}"] = chance
            rows[f"{exception}/{step}"] = {following: 1.0 - AGAIN, step: AGAIN}
    return rows


ROBOT = Chain(_rows(), {"navigate": 3.0, "carry": 2.0, "person": 2.0})


def robot(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Twelve steps over and over; four exceptions come in between, after which the cycle goes on where it was.

    Where it was follows from the latest two tasks, not from the latest one.
    """
    return ROBOT.trace("robot", switches, dwell, seed)


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
