"""The order of visits."""

from __future__ import annotations

from itertools import pairwise, permutations

from hypothesis import given
from hypothesis import strategies as st

from weightpager.transitions import Transitions
from weightpager_lab.contest.measuring import circuit, random_walk


@given(st.integers(2, 12), st.integers(0, 1000))
def test_a_circuit_has_every_ordered_pair_once(count: int, seed: int) -> None:
    tasks = [f"task{number}" for number in range(count)]
    walk = circuit(tasks, seed)
    assert walk[0] == walk[-1]
    assert sorted(pairwise(walk)) == sorted(permutations(tasks, 2))


def test_a_walk_follows_the_transitions() -> None:
    ring = Transitions(("a", "b", "c"), [[0, 1, 0], [0, 0, 1], [1, 0, 0]])  # type: ignore[arg-type]
    walk = random_walk(ring, 7, seed=3)
    assert len(walk) == 7
    assert all(b == {"a": "b", "b": "c", "c": "a"}[a] for a, b in pairwise(walk))


def test_a_seed_decides() -> None:
    tasks = ["a", "b", "c", "d"]
    assert circuit(tasks, 1) == circuit(tasks, 1) != circuit(tasks, 2)
    assert random_walk(Transitions.uniform(tasks), 20, 1) == random_walk(Transitions.uniform(tasks), 20, 1)
