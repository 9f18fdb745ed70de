"""What a contest is to measure, and how long it may take: pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from weightpager.bundle import Bundle
from weightpager.lab.companions.companion import Name
from weightpager.lab.contest.results.result import Limits
from weightpager.lab.contest.rivals.methods import Method

_LARGE = 256 << 20
_QUICK_TASKS = 3

_TIMEOUT = 900.0
_QUICK_SECONDS = 150.0

LEAST_SECONDS = 15.0
"""A method needs at least so long."""


@dataclass(frozen=True)
class Plan:
    """What to measure.

    Attributes:
        bundle: the tasks.
        companions: those of its companions that there are.
        limits: of every process.
        quick: shorter, and accuracy as the compile measured it.
        repeats: of every ordered pair.
        seconds: for the pairs of one method.
        visits: of the trace.
        rooms: for methods that can use more memory, how many tasks the further budgets have room for.
        seed: of orders and inputs.
        random_weights: whether the bundle stands for speed and memory only.
        methods: names of those to run; all if empty.
        command: that was typed.
        end: by `time.monotonic`, when no further method is begun and a running one is killed; None for never.
    """

    bundle: Bundle
    companions: Mapping[Name, Bundle] = field(default_factory=dict)
    limits: Limits = field(default_factory=lambda: Limits(memory=None, storage=None, cpus=None))
    quick: bool = False
    repeats: int = 5
    seconds: float = 60.0
    visits: int = 40
    rooms: tuple[float, ...] = (1.5, 2.0)
    seed: int = 0
    random_weights: bool = False
    methods: tuple[str, ...] = ()
    command: str = ""
    end: float | None = None

    @property
    def tasks(self) -> list[str]:
        """The tasks that are visited; only some in a quick contest of a large model, whose modules take long."""
        names = list(self.bundle.tasks)
        return names[:_QUICK_TASKS] if self.quick and self.bundle.dense_bytes > _LARGE else names

    @property
    def seconds_left(self) -> float:
        """Seconds that a method may take which begins now."""
        return _TIMEOUT if self.end is None else max(LEAST_SECONDS, self.end - time.monotonic())

    def rooms_of(self, method: Method) -> Iterator[float]:
        """The budgets that a method is measured under, in tasks that they have room for."""
        if method.rooms != "more" or not self.rooms:
            yield 1.0
        if method.rooms != "one":
            yield from self.rooms


def quick(plan: Plan) -> Plan:
    """The same plan for less than three minutes from now on; methods that get no time are marked as skipped."""
    return replace(plan, quick=True, repeats=2, seconds=4.0, visits=12, rooms=(), end=time.monotonic() + _QUICK_SECONDS)
