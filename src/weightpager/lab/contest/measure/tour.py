"""In which order tasks are visited: pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightpager.transitions import Transitions


def circuit(tasks: Sequence[str], seed: int = 0) -> list[str]:
    """A walk in which every ordered pair of different tasks follows each other exactly once; it ends where it began.

    Hierholzer's algorithm on the complete directed graph, whose edges are taken in a random order.
    """
    random = np.random.default_rng(seed)
    rest = {task: [tasks[i] for i in random.permutation(len(tasks)) if tasks[i] != task] for task in tasks}
    walk: list[str] = []
    stack = [tasks[0]]
    while stack:
        if rest[stack[-1]]:
            stack.append(rest[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk[::-1]


def random_walk(transitions: Transitions, steps: int, seed: int = 0) -> list[str]:
    """So many visits, each drawn from the row of the one before; the first is the likeliest task."""
    random = np.random.default_rng(seed)
    current = int(transitions.stationary().argmax())
    walk = [current]
    while len(walk) < steps:
        current = int(random.choice(len(transitions.tasks), p=transitions.matrix[current]))
        walk.append(current)
    return [transitions.tasks[task] for task in walk]
