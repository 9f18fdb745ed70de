"""What chance leaves open: intervals that hold a true value in 95 of 100 cases, and how they are put together."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

CONFIDENCE = 0.95


def _ordered(value: tuple[float, float]) -> tuple[float, float]:
    if not value[0] <= value[1]:
        raise ValueError(f"an interval, the lower end first, got {value}")
    return value


Interval = Annotated[tuple[float, float], Field(strict=False), AfterValidator(_ordered)]
"""The lower and the upper end; infinite where nothing is known. A list of them is one, as JSON has it."""

UNKNOWN = (-math.inf, math.inf)


def holds_zero(interval: tuple[float, float]) -> bool:
    """Whether an interval of a difference includes zero, so that the difference may be chance."""
    return interval[0] <= 0 <= interval[1]


def turned(interval: tuple[float, float]) -> tuple[float, float]:
    """The interval of the negated difference."""
    return -interval[1], -interval[0]


def mean_interval(estimates: Sequence[float], intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The interval of the mean of values that were measured apart from one another.

    The distances from the estimates to the ends are added as squares (Newcombe 1998; Zou and Donner 2008), which needs
    nothing but the intervals: they may come from different metrics, and any of them may be left out later.
    """
    centre, count = sum(estimates) / len(estimates), len(estimates)
    pairs = list(zip(estimates, intervals, strict=True))
    below = math.hypot(*(max(0.0, estimate - low) for estimate, (low, _) in pairs)) / count
    above = math.hypot(*(max(0.0, high - estimate) for estimate, (_, high) in pairs)) / count
    interval = centre - below, centre + above
    return UNKNOWN if math.isnan(interval[0]) or math.isnan(interval[1]) else interval


def items_to_tell(estimate: float, interval: tuple[float, float], items: int) -> int | None:
    """About how many held-out items would show a difference of this size; None if no number would.

    Args:
        estimate: of the difference.
        interval: of it, found on ``items``.
        items: that it was measured on.
    """
    reach = estimate - interval[0] if estimate > 0 else interval[1] - estimate
    if estimate == 0 or not math.isfinite(reach):
        return None
    ratio = reach / abs(estimate)
    needed = items * ratio * ratio
    if not needed < 1e9:
        return None
    scale: int = 10 ** max(0, len(str(math.ceil(needed))) - 2)
    return math.ceil(needed / scale) * scale
