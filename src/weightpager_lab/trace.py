"""A sequence of visits, and what is known of its origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.errors import ConfigError
from weightpager.runtime.prediction.planner import Planner
from weightpager.trace_file import Visit, merged
from weightpager.transitions import Transitions

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


Floats = npt.NDArray[np.float64]

_SPREAD = 0.5  # of ln(seconds)


class Chain:
    """A semi-Markov chain with log-normal dwell times.

    Args:
        rows: of each state, how likely each next one is, as weights. A state is a task, or ``task/situation``; no two
            next states of one state have the same task, so that whoever saw all tasks knows the state.
        dwell: how long the stay in a state is, compared with others that aren't named; also by (state, next state).
    """

    def __init__(
        self, rows: Mapping[str, Mapping[str, float]], dwell: Mapping[str | tuple[str, str], float] | None = None
    ) -> None:
        states = tuple(rows)
        number = {state: index for index, state in enumerate(states)}
        matrix = np.zeros((len(states), len(states)))
        for state, weights in rows.items():
            assert len({task_of(other) for other in weights} | {task_of(state)}) == len(weights) + 1, state
            for other, weight in weights.items():
                matrix[number[state], number[other]] = weight / sum(weights.values())
        self.states = Transitions(states, matrix)
        self._dwell = np.array([[_dwell_of(dwell or {}, a, b) for b in states] for a in states])

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, in the order of the states."""
        return tuple(dict.fromkeys(task_of(state) for state in self.states.tasks))

    @cached_property
    def entropy(self) -> float:
        """Bits per switch: ``-Σ π_s P_st log2 P_st`` over the states."""
        matrix = self.states.matrix
        logs = np.log2(matrix, where=matrix > 0, out=np.zeros_like(matrix))
        return float(-(self.states.switch_rate() * logs).sum())

    def trace(self, name: str, switches: int, dwell: float, seed: int) -> Trace:
        """A walk's visits; arguments as of `TraceMaker`."""
        check_size(switches, dwell)
        draws = np.random.default_rng(seed)
        return Trace(name, self.tasks, self.visits(self.walk(switches, draws), dwell, draws), self.entropy)

    def walk(self, switches: int, random: np.random.Generator) -> list[int]:
        """States of ``switches`` + 1 visits, from a stationary start."""
        matrix = self.states.matrix
        walk = [int(random.choice(len(matrix), p=self.states.stationary()))]
        for _ in range(switches):
            walk.append(int(random.choice(len(matrix), p=matrix[walk[-1]])))
        return walk

    def visits(self, walk: list[int], dwell: float, random: np.random.Generator) -> tuple[Visit, ...]:
        """The visits of a walk; ``dwell`` is their mean length in seconds, in the long run."""
        scale = dwell / float((self.states.switch_rate() * self._dwell).sum())
        lengths = [
            scale * self._dwell[state, following] * random.lognormal(-(_SPREAD**2) / 2, _SPREAD)
            for state, following in pairwise(walk)
        ]
        starts = np.concatenate([[0.0], np.cumsum(lengths)])
        return tuple(
            Visit(task_of(self.states.tasks[state]), float(start)) for state, start in zip(walk, starts, strict=True)
        )


def task_of(state: str) -> str:
    return state.partition("/")[0]


def _dwell_of(dwell: Mapping[Any, float], state: str, following: str) -> float:
    return dwell.get((state, following), dwell.get(state, dwell.get(task_of(state), 1.0)))


TASKS = tuple(f"task_{number:02}" for number in range(16))
RANDOM = Chain({task: {other: 1.0 for other in TASKS if other != task} for task in TASKS})


def random(switches: int, dwell: float = 1.0, seed: int = 0) -> Trace:
    """Every other task is as likely as the next, always."""
    return RANDOM.trace("random", switches, dwell, seed)
