"""What is on a road: drawn by a number, and nothing of it is a photograph. Metres, seen from a car's camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Daytime = Literal["day", "dusk", "night"]
Light = Literal["red", "amber", "green"]

LANE = 3.5
"""Width of a lane. The road has two: the own one, about 0, and another to its left, about −`LANE`."""

OFF_CENTRE = 0.4
"""From here on the car is left or right of its lane's middle."""

NEAR, MIDDLE = 9.0, 16.0
"""Up to here an obstacle is near, and up to there at a middle distance."""

_OFFSET = 1.2
_SIGNAL_AT, _VEHICLE_AT, _OBSTACLE_AT, _BARRIER_AT = (12.0, 34.0), (6.0, 30.0), (4.5, 26.0), (6.5, 20.0)
_BESIDE = {"tree": (6.0, 14.0), "house": (9.0, 18.0)}


@dataclass(frozen=True)
class Signal:
    """A traffic light; beside the road, or above the lane."""

    light: Light
    distance: float
    overhead: bool


@dataclass(frozen=True)
class Thing:
    """Something that stands on or beside the road, its middle ``x`` to the right of the own lane's."""

    kind: Literal["car", "truck", "box", "person", "cone", "barrier", "sign", "tree", "house", "lamp"]
    distance: float
    x: float
    colour: tuple[float, float, float]


@dataclass(frozen=True)
class Scene:
    """One moment.

    Attributes:
        daytime, rain, fog: rain from 0 to 1; fog as the share that is lost per metre.
        offset: how far the car is to the right of its lane's middle.
        bend: of the road, as 1 ÷ radius; positive to the right.
        signal: that the car has to obey.
        vehicle: ahead in the own lane.
        obstacle: in the own lane.
        closed: lanes with a barrier across them, as multiples of `LANE`; 0 is the own one.
        barriers: across them.
        scenery: what means nothing: other traffic, signs, trees, houses, street lamps.
        grain: sensor noise; the rest of the noise follows from the scene's number.
    """

    daytime: Daytime
    rain: float
    fog: float
    offset: float
    bend: float
    signal: Signal | None
    vehicle: Thing | None
    obstacle: Thing | None
    closed: tuple[int, ...]
    barriers: tuple[Thing, ...]
    scenery: tuple[Thing, ...]
    grain: float

    def labels(self) -> dict[str, str]:
        """The right answer of every task."""
        return {
            "traffic-light": self.signal.light if self.signal else "none",
            "vehicle-ahead": self.vehicle.kind if self.vehicle else "none",
            "lane-offset": _side(self.offset),
            "obstacle-distance": _range(self.obstacle.distance) if self.obstacle else "none",
            "drivable-area": {(): "both", (-1,): "own", (0,): "left", (0, -1): "none"}[self.closed],
        }


CLASSES: dict[str, tuple[str, ...]] = {
    "traffic-light": ("none", "red", "amber", "green"),
    "vehicle-ahead": ("none", "car", "truck"),
    "lane-offset": ("left", "centre", "right"),
    "obstacle-distance": ("none", "near", "middle", "far"),
    "drivable-area": ("both", "own", "left", "none"),
}
"""Task → its classes."""


def draw(random: np.random.Generator) -> Scene:
    """A scene; every class of every task is about as likely as the others, nothing more often than anything else."""
    daytime: Daytime = ("day", "dusk", "night")[_choice(random, (0.5, 0.2, 0.3))]
    rain = float(random.uniform(0.3, 1)) if random.random() < 0.3 else 0.0
    obstacle = _obstacle(random) if random.random() < 0.7 else None
    behind = 2 + obstacle.distance if obstacle else 0.0  # what stands behind an obstacle is seen beside or above it
    vehicle = _vehicle(random, behind) if random.random() < 0.6 else None
    hidden = vehicle is not None and vehicle.kind == "truck"  # what hangs above the lane
    signal = _signal(random, beside=hidden) if random.random() < 0.7 else None
    closed = ((), (-1,), (0,), (0, -1))[_choice(random, (0.34, 0.22, 0.22, 0.22))]
    lengths = [_between(random, _BARRIER_AT, behind if lane == 0 else 0.0) for lane in closed]
    return Scene(
        daytime=daytime,
        rain=rain,
        fog=float(random.uniform(0.02, 0.05)) if random.random() < 0.15 else 0.002,
        offset=float(random.uniform(-_OFFSET, _OFFSET)),
        bend=float(random.normal(0, 0.002)),
        signal=signal,
        vehicle=vehicle,
        obstacle=obstacle,
        closed=closed,
        barriers=tuple(
            Thing("barrier", at, lane * LANE, (0.9, 0.9, 0.9)) for lane, at in zip(closed, lengths, strict=True)
        ),
        scenery=tuple(_scenery(random)),
        grain=float(random.uniform(0.01, 0.03)) * (1.4 if daytime == "night" else 1.0),
    )


def _side(offset: float) -> str:
    return "centre" if abs(offset) < OFF_CENTRE else "left" if offset < 0 else "right"


def _range(distance: float) -> str:
    return "near" if distance < NEAR else "middle" if distance < MIDDLE else "far"


def _choice(random: np.random.Generator, chances: Sequence[float]) -> int:
    return int(random.choice(len(chances), p=chances))


def _between(random: np.random.Generator, limits: tuple[float, float], least: float = 0.0) -> float:
    """Nearer ones more often, as further ones take less of the picture."""
    start = max(limits[0], least)
    share = float(random.random() ** 1.4)
    return start + (max(limits[1], start + 4) - start) * share


def _colour(random: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = random.uniform(0.08, 0.85, 3)
    return float(red), float(green), float(blue)


def _signal(random: np.random.Generator, *, beside: bool) -> Signal:
    lights: tuple[Light, ...] = ("red", "amber", "green")
    return Signal(
        lights[_choice(random, (1 / 3,) * 3)], _between(random, _SIGNAL_AT), not beside and random.random() < 0.4
    )


def _vehicle(random: np.random.Generator, behind: float) -> Thing:
    distance, x = _between(random, _VEHICLE_AT, behind), float(random.uniform(-0.3, 0.3))
    return Thing("truck" if random.random() < 0.45 else "car", distance, x, _colour(random))


def _obstacle(random: np.random.Generator) -> Thing:
    distance, side = float(random.uniform(*_OBSTACLE_AT)), float(random.uniform(-1.1, 1.1))
    if random.random() < 0.4:
        return Thing("person", distance, side, _colour(random))
    if random.random() < 0.5:
        return Thing("cone", distance, side, (0.95, 0.4, 0.05))
    return Thing("box", distance, side, (0.55, 0.38, 0.2))


def _scenery(random: np.random.Generator) -> list[Thing]:
    things = []
    for _ in range(int(random.integers(2, 8))):
        kind: Literal["tree", "house"] = "tree" if random.random() < 0.5 else "house"
        side = float(random.uniform(*_BESIDE[kind]))  # so far that nothing on the road is behind it
        x = side if random.random() < 0.5 else -side - LANE
        things.append(Thing(kind, float(random.uniform(8, 35)), x, _colour(random)))
    if random.random() < 0.5:  # a round sign, perhaps red or green
        things.append(Thing("sign", float(random.uniform(7, 30)), float(random.uniform(2.6, 4.0)), _colour(random)))
    if random.random() < 0.5:  # somebody in the other lane
        things.append(Thing("car", float(random.uniform(6, 40)), -LANE, _colour(random)))
    things += [Thing("lamp", float(at), -LANE - 2.5, (1.0, 0.75, 0.4)) for at in random.uniform(8, 40, 2)]
    return things
