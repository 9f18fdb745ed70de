"""A drive whose route is known a little ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from weightpager.trace_file import Visit
from weightpager_lab.traces.trace import Chain, Trace, check_size

CHAIN = Chain(
    {
        "motorway": {"exit": 0.5, "roadworks": 0.2, "tunnel": 0.15, "bridge": 0.15},
        "exit": {"roundabout": 0.4, "junction": 0.6},
        "tunnel": {"motorway": 0.8, "bridge": 0.2},
        "bridge": {"motorway": 0.7, "tunnel": 0.3},
        "roadworks": {"motorway": 0.7, "main_road": 0.3},
        "toll": {"motorway": 1.0},
        "main_road": {"junction": 0.5, "roundabout": 0.2, "crossing": 0.2, "level_crossing": 0.1},
        "junction": {"main_road": 0.5, "residential": 0.35, "toll": 0.15},
        "roundabout": {"main_road": 0.6, "toll": 0.2, "fuel_station": 0.2},
        "crossing": {"main_road": 0.7, "residential": 0.3},
        "level_crossing": {"main_road": 1.0},
        "residential": {"crossing": 0.3, "school_zone": 0.25, "junction": 0.25, "parking": 0.2},
        "school_zone": {"residential": 0.7, "crossing": 0.3},
        "parking": {"manoeuvre": 1.0},
        "manoeuvre": {"residential": 0.8, "parking": 0.2},
        "fuel_station": {"main_road": 0.9, "manoeuvre": 0.1},
    },
    {"motorway": 5.0, "main_road": 2.0, "parking": 0.5},
)

RELIABILITY = 0.95
"""How often the route comes true; else the driver, or the road, decides otherwise."""

_TAIL = 4


class Route:
    """What the navigation says, by the visits so far: a planner for ``CallablePredictor``.

    Args:
        driven: the tasks as they came.
        announced: of each visit, the task that the navigation expected after it.
    """

    def __init__(self, driven: Sequence[str], announced: Sequence[str]) -> None:
        self._driven, self._announced = tuple(driven), tuple(announced)
        self._place = 0

    def __call__(self, visits: Sequence[Visit]) -> Mapping[str, float]:
        """The weight of each task that may come next; empty off the route and at its end."""
        tail = tuple(visit.task for visit in visits[-_TAIL:])
        for place in range(max(self._place, len(tail) - 1), len(self._announced)):
            if tail and self._driven[place + 1 - len(tail) : place + 1] == tail:
                self._place = place
                return _weights(self._driven[place], self._announced[place])
        return {}


def _weights(task: str, announced: str) -> dict[str, float]:
    row = CHAIN.states.matrix[CHAIN.states.tasks.index(task)]
    weights = {other: (1 - RELIABILITY) * float(chance) for other, chance in zip(CHAIN.tasks, row, strict=True)}
    return {**weights, announced: weights[announced] + RELIABILITY}


def _announced(walk: list[int], random: np.random.Generator) -> list[int]:
    """Of each visit but the last, what the navigation expects after it: the truth, or a likely lie."""
    told = random.random(len(walk) - 1) < RELIABILITY
    others = [int(random.choice(len(CHAIN.tasks), p=CHAIN.states.matrix[state])) for state in walk[:-1]]
    return [truth if right else other for truth, right, other in zip(walk[1:], told, others, strict=True)]


def drive(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Sixteen kinds of road. Its planner announces the next one, and is right most of the time.

    ``entropy`` is that of one who doesn't know the route.
    """
    check_size(switches, dwell)
    random = np.random.default_rng(seed)
    walk = CHAIN.walk(switches, random)
    visits = CHAIN.visits(walk, dwell, random)
    route = Route([CHAIN.tasks[state] for state in walk], [CHAIN.tasks[state] for state in _announced(walk, random)])
    return Trace("drive", CHAIN.tasks, visits, CHAIN.entropy, route)
