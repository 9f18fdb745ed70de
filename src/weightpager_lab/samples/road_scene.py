"""What is on a road: drawn by a number, and nothing of it is a photograph. Metres, seen from a car's camera."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

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

    kind: Literal["car", "truck", "box", "person", "cone", "barrier", "sign", "tree", "house", "lamp", "bicycle"]
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
        scenery: what means nothing to the five tasks: other traffic, signs, trees, houses, street lamps, passers-by.
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


Floats = npt.NDArray[np.float64]
Pixels = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]

SIDE = 64
"""Pixels of a picture's side, unless another is asked for."""

MARKS = ("red", "amber", "green", "car", "truck", "obstacle", "own barrier", "barrier")
"""What a model can be shown in a picture while it learns to see."""

PASSERS_BY = ("person", "bicycle")
"""Marks behind these, of what stands or rides beside the own lane; no scene that `draw` gives has any."""

_FOCAL, _HORIZON = 1.0, 0.36  # as shares of a picture's side: the camera sees 53 degrees
_HEIGHT = 1.4  # of the camera above the road, in metres
_SKY: dict[str, tuple[Colour, float]] = {
    "day": ((0.62, 0.74, 0.88), 1.0),
    "dusk": ((0.55, 0.42, 0.42), 0.5),
    "night": ((0.04, 0.04, 0.08), 0.14),
}
"""Its colour, and how much light it gives."""

_LAMPS: dict[str, Colour] = {"red": (1.0, 0.08, 0.05), "amber": (1.0, 0.65, 0.05), "green": (0.1, 1.0, 0.45)}
_SIZES: dict[str, tuple[float, float]] = {
    "car": (1.8, 1.45), "truck": (2.5, 3.3), "box": (0.8, 0.7), "person": (0.6, 1.75), "cone": (0.5, 0.8),
    "barrier": (3.2, 0.95), "tree": (2.5, 5.0), "house": (7.0, 6.0),
}  # fmt: skip
"""Width and height."""


def render(scene: Scene, random: np.random.Generator, side: int = SIDE, fine: int = 2) -> tuple[Pixels, Pixels]:
    """The scene as [side, side, 3], and what is to be seen where.

    Args:
        scene: to be seen.
        random: draws what the scene doesn't say: texture, drops, noise.
        side: of the picture, in pixels.
        fine: drawn at so many times the resolution.

    Returns:
        The picture, and [side, side] places in `MARKS` and then `PASSERS_BY`, one more than that: 0 where there is none
        of them.
    """
    canvas = _Canvas(scene, side * fine)
    canvas.road(random)
    things = [*scene.scenery, *scene.barriers]
    things += [thing for thing in (scene.vehicle, scene.obstacle) if thing is not None]
    standing: list[Thing | Signal] = [*things, *([scene.signal] if scene.signal else [])]
    for thing in sorted(standing, key=lambda thing: -thing.distance):
        if isinstance(thing, Signal):
            canvas.signal(thing)
        else:
            canvas.thing(thing)
    picture = canvas.lit()
    if scene.rain:
        _add_rain(picture, scene.rain, random)
    small = picture.reshape(side, fine, side, fine, 3).mean((1, 3))
    small = small * random.uniform(0.85, 1.15) * random.uniform(0.95, 1.05, 3)  # exposure and white balance
    small += random.normal(0, scene.grain, small.shape)
    found: Pixels = (small.clip(0, 1) * 255).round().astype(np.uint8)
    return found, canvas.marks[::fine, ::fine]


@dataclass
class _Canvas:
    """What light falls on, what shines by itself, and how far away each pixel is."""

    scene: Scene
    pixels: int  # of its side

    def __post_init__(self) -> None:
        self.focal, self.horizon = self.pixels * _FOCAL, _HORIZON * self.pixels
        self.sky, self.daylight = _SKY[self.scene.daytime]
        self.colour = np.empty((self.pixels, self.pixels, 3))
        self.colour[:] = self.sky
        self.glow = np.zeros_like(self.colour)
        self.distance = np.full((self.pixels, self.pixels), np.inf)
        self.marks = np.zeros((self.pixels, self.pixels), np.uint8)
        self._mark = 0

    def road(self, random: np.random.Generator) -> None:
        """Everything below the horizon: grass, asphalt, marks."""
        top = int(self.horizon) + 1
        rows = np.arange(top, self.pixels) + 0.5
        far = np.broadcast_to((self.focal * _HEIGHT / (rows - self.horizon))[:, None], (len(rows), self.pixels))
        columns = np.arange(self.pixels) + 0.5 - self.pixels / 2
        across = columns * far / self.focal - self._shift(far)  # from the lane's middle
        ground = np.empty((len(rows), self.pixels, 3))
        ground[:] = (0.22, 0.33, 0.14)
        asphalt = (across > -1.5 * LANE - 0.4) & (across < LANE / 2 + 0.4)
        ground[asphalt] = 0.30 - 0.06 * self.scene.rain
        worn = random.uniform(0.45, 0.85)
        edge = (abs(across - LANE / 2) < 0.09) | (abs(across + 1.5 * LANE) < 0.09)
        dashes = (abs(across + LANE / 2) < 0.09) & ((far + random.uniform(0, 6)) % 6 < 3)
        ground[(edge | dashes) & asphalt] = worn
        self.colour[top:] = ground * random.normal(1, 0.05, (len(rows), self.pixels, 1))
        self.distance[top:] = far

    def thing(self, thing: Thing) -> None:
        """Something that stands; no more of it than tells it from the others."""
        role, marks = self._role(thing), (*MARKS, *PASSERS_BY)
        self._mark = 1 + marks.index(role) if role in marks else 0
        if thing.kind == "sign":
            self._box(thing, thing.x, 0.1, 0.0, 2.2, (0.4, 0.4, 0.4))
            self._disc(thing, thing.x, 2.4, 0.45, thing.colour)
            return
        if thing.kind == "lamp":
            self._box(thing, thing.x, 0.15, 0.0, 5.5, (0.2, 0.2, 0.2))
            if self.scene.daytime != "day":
                self._shine(thing, thing.x, 5.5, 0.25, thing.colour, 0.8)
            return
        if thing.kind == "bicycle":
            self._bicycle(thing)
            return
        width, height = _SIZES[thing.kind]
        self._box(thing, thing.x, width, 0.0, height, thing.colour)
        if thing.kind in ("car", "truck"):
            self._vehicle(thing, width, height)
        elif thing.kind == "barrier":
            for stripe in np.linspace(-width / 2 + 0.2, width / 2 - 0.2, 5):
                self._box(thing, thing.x + float(stripe), 0.32, 0.3, height, (0.85, 0.1, 0.1))
            self._box(thing, thing.x, width, 0.0, 0.3, (0.25, 0.25, 0.25))
        elif thing.kind == "person":
            self._box(thing, thing.x, width, 0.0, 0.85, (0.12, 0.12, 0.2))
            self._box(thing, thing.x, 0.3, 1.45, height, (0.8, 0.6, 0.5))
        elif thing.kind == "cone":
            self._box(thing, thing.x, width, 0.35, 0.55, (0.95, 0.95, 0.95))
        elif thing.kind == "tree":
            self._box(thing, thing.x, width, 0.0, 1.6, (0.25, 0.2, 0.12))
        elif thing.kind == "house":
            for storey, window in product((0.9, 3.4), (-2.2, 0.0, 2.2)):
                self._box(thing, thing.x + window, 1.0, storey, storey + 1.3, (0.15, 0.17, 0.2))

    def _role(self, thing: Thing) -> str:
        """What it is to the car: `MARKS` has those that matter."""
        if thing is self.scene.vehicle:
            return thing.kind
        if thing is self.scene.obstacle:
            return "obstacle"
        if thing.kind in PASSERS_BY:
            return thing.kind
        return ("barrier" if thing.x else "own barrier") if thing.kind == "barrier" else "scenery"

    def _vehicle(self, thing: Thing, width: float, height: float) -> None:
        glass = (0.10, 0.13, 0.18)
        if thing.kind == "car":
            self._box(thing, thing.x, 0.8 * width, 0.85, 1.3, glass)
        else:
            self._box(thing, thing.x, 0.94 * width, 0.9, height - 0.15, tuple(0.8 * c for c in thing.colour))  # type: ignore[arg-type]
        self._box(thing, thing.x, width, 0.0, 0.3, (0.04, 0.04, 0.04))
        oncoming = thing.x < -LANE / 2
        shine = 0.05 if self.scene.daytime == "day" else 0.55
        for side in (-0.42, 0.42):
            colour = (1.0, 0.95, 0.8) if oncoming else (0.9, 0.05, 0.05)
            self._box(thing, thing.x + side * width, 0.28, 0.6, 0.82, colour)
            self._shine(thing, thing.x + side * width, 0.7, 0.1, colour, shine)

    def _bicycle(self, thing: Thing) -> None:
        """From its side, with who rides it."""
        for side in (-0.52, 0.52):
            self._disc(thing, thing.x + side, 0.36, 0.36, (0.06, 0.06, 0.06), hollow=0.26)
        self._box(thing, thing.x, 1.04, 0.5, 0.58, (0.7, 0.7, 0.72))
        self._box(thing, thing.x, 0.22, 0.45, 0.9, (0.12, 0.12, 0.2))
        self._box(thing, thing.x, 0.45, 0.9, 1.45, thing.colour)
        self._box(thing, thing.x, 0.28, 1.45, 1.75, (0.8, 0.6, 0.5))

    def signal(self, signal: Signal) -> None:
        """A dark case with three lamps, one of them lit, larger than in life."""
        self._mark = 0
        x, bottom = (0.0, 3.3) if signal.overhead else (LANE / 2 + 1.9, 2.2)
        grey = (0.25, 0.25, 0.25)
        if signal.overhead:
            self._box(signal, LANE / 2 + 1.9, 0.2, 0.0, 6.3, grey)
            self._box(signal, LANE / 4 + 0.95, LANE / 2 + 1.9, 6.0, 6.3, grey)
        else:
            self._box(signal, x, 0.2, 0.0, bottom, grey)
        self._box(signal, x, 1.05, bottom, bottom + 2.7, (0.03, 0.03, 0.03))
        for number, light in enumerate(("green", "amber", "red")):
            lit = light == signal.light
            self._mark = 1 + MARKS.index(light) if lit else 0
            height = bottom + 0.45 + 0.9 * number
            dim: Colour = tuple(0.14 * part for part in _LAMPS[light])  # type: ignore[assignment]
            self._disc(signal, x, height, 0.38, _LAMPS[light] if lit else dim)
            if lit:
                self._shine(signal, x, height, 0.38, _LAMPS[light], 0.9)

    def lit(self) -> Floats:
        """The picture: daylight, headlights, haze, and what shines by itself."""
        near = np.minimum(self.distance, 1e6)[..., None]
        headlights = 0.0 if self.scene.daytime == "day" else 0.75 / (1 + (near / 14) ** 2)
        light = np.minimum(self.daylight + headlights, 1.0)
        sky = np.isinf(self.distance)[..., None]
        shown = np.where(sky, self.colour, self.colour * light)
        clear = np.where(sky, 1.0, np.exp(-self.scene.fog * near))
        haze = np.array(self.sky) * 0.9 + 0.05
        found: Floats = shown * clear + haze * (1 - clear) + self.glow
        return found

    def _shift(self, far: float | Floats) -> float | Floats:
        """How far right of the camera the own lane's middle is."""
        return self.scene.bend * far**2 / 2 - self.scene.offset

    def _place(self, thing: Thing | Signal, x: float, height: float) -> tuple[float, float]:
        far = thing.distance
        column = self.pixels / 2 + self.focal * (x + float(self._shift(far))) / far
        return column, self.horizon + self.focal * (_HEIGHT - height) / far

    def _box(self, thing: Thing | Signal, x: float, width: float, low: float, high: float, colour: Colour) -> None:
        left, bottom = self._place(thing, x - width / 2, low)
        right, top = self._place(thing, x + width / 2, high)
        rows = slice(max(0, round(top)), max(0, round(bottom)))
        columns = slice(max(0, round(left)), max(0, max(round(right), round(left) + 1)))
        self.colour[rows, columns] = colour
        self.distance[rows, columns] = thing.distance
        self.glow[rows, columns] = 0.0
        self.marks[rows, columns] = self._mark

    def _disc(
        self, thing: Thing | Signal, x: float, height: float, radius: float, colour: Colour, hollow: float = 0.0
    ) -> None:
        apart = self._apart(thing, x, height)
        inside = (apart <= max(0.6, self.focal * radius / thing.distance)) & (
            apart >= self.focal * hollow / thing.distance
        )
        self.colour[inside] = colour
        self.distance[inside] = thing.distance
        self.glow[inside] = 0.0
        self.marks[inside] = self._mark

    def _shine(
        self, thing: Thing | Signal, x: float, height: float, radius: float, colour: Colour, strength: float
    ) -> None:
        size = max(0.8, self.focal * radius / thing.distance)
        halo = np.exp(-((self._apart(thing, x, height) / (1.3 * size)) ** 2))[..., None]
        self.glow += strength * np.exp(-self.scene.fog * thing.distance) * halo * np.array(colour)

    def _apart(self, thing: Thing | Signal, x: float, height: float) -> Floats:
        column, row = self._place(thing, x, height)
        axis = np.arange(self.pixels) + 0.5
        apart: Floats = np.hypot(axis[None, :] - column, axis[:, None] - row)
        return apart


def _add_rain(picture: Floats, rain: float, random: np.random.Generator) -> None:
    """Streaks, less contrast, and a film of water on the lens."""
    picture *= 1 - 0.25 * rain
    picture += 0.1 * rain * picture.mean((0, 1))
    for _ in range(int(60 * rain)):
        row, column = random.integers(0, len(picture), 2)
        picture[row : row + int(random.integers(4, 12)), column] += 0.18 * (0.4 + picture.mean())
    picture[1:-1] = (picture[:-2] + 2 * picture[1:-1] + picture[2:]) / 4
    picture[:, 1:-1] = (picture[:, :-2] + 2 * picture[:, 1:-1] + picture[:, 2:]) / 4
