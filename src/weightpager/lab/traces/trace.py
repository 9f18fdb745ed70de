"""A sequence of visits, and what is known of its origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from weightpager.errors import ConfigError
from weightpager.runtime.prediction.planner import Planner
from weightpager.trace_file import Visit, merged

_LONGEST_DWELL = 1e9
"""Seconds, some thirty years. The sum of any number of such dwell times is finite."""


@dataclass(frozen=True)
class Trace:
    """Which task ran when.

    Attributes:
        name: of the generator, or of the log.
        tasks: all names that it can have.
        visits: oldest first, no task twice in a row; times in seconds from 0.
        entropy: bits that the next task has left for one who knows the generator and the whole past: the least log
            loss in the long run. None if it isn't known.
        planner: tells what comes next, as far as it is known beforehand; None if nobody knows. It follows the visits
            that it is shown, and so serves one run.
    """

    name: str
    tasks: tuple[str, ...]
    visits: tuple[Visit, ...]
    entropy: float | None
    planner: Planner | None = None

    @property
    def first_order_entropy(self) -> float:
        """H(next | current) in bits, from the counts of the visits themselves.

        Too low for a short trace: a predictor would have to know these counts beforehand.
        """
        pairs = Counter((before.task, after.task) for before, after in pairwise(self.visits))
        totals = Counter[str]()
        for (before, _), count in pairs.items():
            totals[before] += count
        bits = [-count * float(np.log2(count / totals[before])) for (before, _), count in pairs.items()]
        return sum(bits) / max(1, pairs.total())


def check_size(switches: int, dwell: float) -> None:
    """Refuse what no trace can have.

    Raises:
        ConfigError: no switch, or a mean dwell time that isn't over 0 and up to 1e9 seconds.
    """
    if switches < 1:
        raise ConfigError(f"trace: expected at least one switch, got {switches}")
    if not 0 < dwell <= _LONGEST_DWELL:
        raise ConfigError(f"trace: expected a mean dwell time over 0 and up to {_LONGEST_DWELL:g} seconds, got {dwell}")


def in_place_of(
    made: Callable[[int, float], Trace], names: Sequence[str], switches: int, dwell: float
) -> tuple[Visit, ...]:
    """A trace in which its tasks are replaced by these, in their order. If it has more tasks, several become one.

    Args:
        made: makes the trace, from a number of switches and a mean dwell time.
        names: two at least.
        switches: that are left once neighbours of the same task are merged; a real log may have fewer.
        dwell: mean seconds between these.
    """
    length = switches
    while True:
        trace = made(length, dwell)
        place = {task: names[number % len(names)] for number, task in enumerate(trace.tasks)}
        visits = renamed(trace.visits, place)
        if len(visits) > switches or len(trace.visits) <= length:
            break
        length *= 2
    visits = visits[: switches + 1]
    merged = sum(visit.start < visits[-1].start for visit in trace.visits)
    scale = (len(visits) - 1) / max(1, merged)
    return tuple(replace(visit, start=visit.start * scale) for visit in visits)


def renamed(visits: Iterable[Visit], names: Mapping[str, str]) -> tuple[Visit, ...]:
    """The same visits under other names; neighbours that get the same one become one visit."""
    return merged(Visit(names[visit.task], visit.start) for visit in visits)
