"""Which alignment strength gives what the user states: bytes per switch, or the accuracy that alignment may cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from weightpager.config import format_room
from weightpager.errors import CompileError

INFINITY = float("inf")
FIRST = 0.5
_DOUBLINGS, _HALVINGS = 12, 7
"""Strengths from 1e-4 to 2e3, then to a hundredth: beyond, alignment does nothing more or nothing less."""

_STRONGEST = FIRST * 2**_DOUBLINGS


@dataclass(frozen=True)
class Point:
    """What one strength leads to.

    Attributes:
        strength: λ.
        switch_bytes: that an average switch loads.
        loss: what alignment costs, as the caller measures it; 0 at strength 0.
    """

    strength: float
    switch_bytes: float
    loss: float


@dataclass(frozen=True)
class Wish:
    """What the user states: at most so much of one of a point's two numbers."""

    what: Literal["switch_bytes", "loss"]
    most: float

    def met_by(self, point: Point) -> bool:
        """Whether a point is good enough."""
        return bool(getattr(point, self.what) <= self.most)


def search(wish: Wish, evaluate: Callable[[float], Point]) -> tuple[Point, list[Point]]:
    """The best point that meets the wish, and all points that were tried.

    Bytes fall with the strength and losses rise, so a limit on bytes asks for the weakest alignment that meets it, and
    a limit on the loss for the strongest. Where a measured loss does not rise steadily, the point found still meets the
    wish, but a stronger one may, too.

    Args:
        wish: what is asked for.
        evaluate: measures one strength; called about twenty times at most, once for each.

    Raises:
        CompileError: the wish can't be met; names the least that can be had.
    """
    tried: dict[float, Point] = {}

    def meets(strength: float) -> bool:
        if strength not in tried:
            tried[strength] = evaluate(strength)
        return wish.met_by(tried[strength])

    # The ends at which the wish is easiest, the end that would be best, and the way from the first strength to it.
    # Where tasks have values of their own, one mask for all may load more than strong alignment does.
    ends, best, away = ((INFINITY, _STRONGEST), 0.0, 0.5) if wish.what == "switch_bytes" else ((0.0,), INFINITY, 2.0)
    if meets(best):
        return tried[best], [*tried.values()]
    easy = next((end for end in ends if meets(end)), None)
    if easy is None:
        raise CompileError(_refusal(wish, min(tried.values(), key=lambda point: float(getattr(point, wish.what)))))
    good, bad = _bracket(meets, away)
    if good is not None and bad is not None:
        for _ in range(_HALVINGS):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if meets(middle) else (good, middle)
    wanted = easy if good is None else good
    return tried[wanted], [*tried.values()]


def _bracket(meets: Callable[[float], bool], away: float) -> tuple[float | None, float | None]:
    """Two strengths next to each other of which the first meets the wish and the second doesn't; None at an end."""
    last, strength = None, FIRST
    first_meets = meets(strength)
    for _ in range(_DOUBLINGS):
        last, strength = strength, strength * (away if first_meets else 1 / away)
        if meets(strength) != first_meets:
            return (last, strength) if first_meets else (strength, last)
    return (strength, None) if first_meets else (None, strength)


def _refusal(wish: Wish, least: Point) -> str:
    if wish.what == "loss":
        enough = f"{least.loss + 0.005:.2f}"  # rounded up: stating it must do
        return f"accuracy_loss: expected at least {enough}, which no alignment at all costs, got {wish.most:g}"
    return (
        f"max_switch: expected at least {math.ceil(least.switch_bytes)} B, the least that an average switch "
        f"between these tasks loads, got {format_room(wish.most)}; tasks of the same sparsity can share all blocks"
    )
