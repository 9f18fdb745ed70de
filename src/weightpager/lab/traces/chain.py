"""Traces of a Markov chain whose states are tasks, or tasks in a certain situation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.lab.traces.trace import Trace, check_size
from weightpager.trace_file import Visit
from weightpager.transitions import Transitions

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
    """The task that runs in a state."""
    return state.partition("/")[0]


def _dwell_of(dwell: Mapping[Any, float], state: str, following: str) -> float:
    return dwell.get((state, following), dwell.get(state, dwell.get(task_of(state), 1.0)))
