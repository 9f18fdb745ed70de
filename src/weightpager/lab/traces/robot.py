"""A robot that picks and places: a cycle with exceptions."""

from __future__ import annotations

from weightpager.lab.traces.chain import Chain
from weightpager.lab.traces.trace import Trace

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


CHAIN = Chain(_rows(), {"navigate": 3.0, "carry": 2.0, "person": 2.0})


def robot(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Twelve steps over and over; four exceptions come in between, after which the cycle goes on where it was.

    Where it was follows from the latest two tasks, not from the latest one.
    """
    return CHAIN.trace("robot", switches, dwell, seed)
