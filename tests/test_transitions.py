import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.transitions import Transitions

TASKS = ("spam", "topic", "pos")


@st.composite
def chains(draw: st.DrawFn) -> Transitions:
    tasks = [f"task{number}" for number in range(draw(st.integers(1, 6)))]
    visits = draw(st.lists(st.sampled_from(tasks), max_size=40))
    return Transitions.from_trace(tasks, visits, draw(st.sampled_from([0.0, 0.1, 1.0])))


@given(chains())
def test_stationary_is_a_distribution_that_a_step_leaves_as_it_is(chain: Transitions) -> None:
    share = chain.stationary()
    assert (share >= 0).all()
    np.testing.assert_allclose(share.sum(), 1.0, atol=1e-12)
    np.testing.assert_allclose(share @ chain.matrix, share, atol=1e-12)


@given(chains())
def test_as_many_switches_lead_to_a_task_as_away_from_it(chain: Transitions) -> None:
    rate = chain.switch_rate()
    np.testing.assert_allclose(rate.sum(axis=0), rate.sum(axis=1), atol=1e-12)
    np.testing.assert_allclose(rate.sum(), 1.0, atol=1e-12)


def test_uniform_follows_with_any_other_task() -> None:
    chain = Transitions.uniform(TASKS)
    np.testing.assert_allclose(chain.matrix, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    np.testing.assert_allclose(chain.stationary(), 1 / 3)
    np.testing.assert_allclose(chain.switch_rate().sum(), 1.0)


def test_a_single_task_follows_itself() -> None:
    chain = Transitions.from_trace(["spam"], ["spam", "spam"])
    assert chain.matrix.tolist() == [[1.0]]
    assert chain.stationary().tolist() == [1.0]


def test_two_tasks_that_alternate_share_the_time() -> None:
    chain = Transitions.from_trace(["a", "b"], ["a", "b", "a", "b"], smoothing=0)
    assert chain.matrix.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(chain.stationary(), [0.5, 0.5])


def test_a_cycle_that_is_almost_closed_off_is_still_weighed_right() -> None:
    rare = 1e-6
    chain = Transitions(TASKS, np.array([[0, 1 - rare, rare], [1 - rare, 0, rare], [0.5, 0.5, 0]]))
    np.testing.assert_allclose(chain.stationary()[2], rare / (1 + rare), rtol=1e-8)


def test_a_trace_counts_switches_and_collapses_repeats() -> None:
    visits = ["spam", "spam", "topic", "spam", "spam", "pos"]
    exact = Transitions.from_trace(TASKS, visits, smoothing=0)
    assert exact.matrix.tolist() == [[0, 0.5, 0.5], [1, 0, 0], [0.5, 0.5, 0]]
    smooth = Transitions.from_trace(TASKS, visits)
    np.testing.assert_allclose(smooth.matrix[1], [2 / 3, 0, 1 / 3])


def test_the_matrix_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        Transitions.uniform(TASKS).matrix[0, 1] = 0.0


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        (np.eye(2), "rows and columns"),
        (np.full((3, 3), 1 / 3), "follow itself"),
        (np.ones((3, 3)) - np.eye(3), "summing to 1"),
        (np.full((3, 3), np.nan), "probabilities"),
        ([[0, 2, -1], [1, 0, 0], [1, 0, 0]], "probabilities"),
    ],
)
def test_a_matrix_that_is_no_chain_is_refused(matrix: np.ndarray, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        Transitions(TASKS, matrix)


@pytest.mark.parametrize("tasks", [[], ["a", "a"]])
def test_tasks_must_be_named_apart(tasks: list[str]) -> None:
    with pytest.raises(ConfigError, match="all different"):
        Transitions.from_trace(tasks, [])


@pytest.mark.parametrize("smoothing", [-1.0, float("nan"), float("inf"), 1e308])
def test_a_smoothing_that_is_no_count_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing"):
        Transitions.from_trace(TASKS, [], smoothing)


def test_a_visit_to_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of spam, topic, pos, got 'spma'"):
        Transitions.from_trace(TASKS, ["spam", "spma"])


def test_new_tasks_are_as_likely_as_any_other() -> None:
    old = Transitions(("a", "b", "c"), np.array([[0, 0.75, 0.25], [0.5, 0, 0.5], [1, 0, 0]]))
    grown = old.extended(["d"])
    assert grown.tasks == ("a", "b", "c", "d")
    np.testing.assert_allclose(grown.matrix[0], [0, 0.5, 1 / 6, 1 / 3])
    np.testing.assert_allclose(grown.matrix[3], [1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(grown.only(["a", "b", "c"]).matrix, old.matrix)
    np.testing.assert_allclose(Transitions.uniform(["a"]).extended(["b"]).matrix, [[0, 1], [1, 0]])


def test_tasks_that_leave_are_as_if_they_had_never_been_asked_for() -> None:
    old = Transitions(("a", "b", "c"), np.array([[0, 0.75, 0.25], [0.5, 0, 0.5], [1, 0, 0]]))
    left = old.only(["b", "c"])
    np.testing.assert_allclose(left.matrix, [[0, 1], [1, 0]])  # c was only ever followed by a
    np.testing.assert_allclose(old.only(["c"]).matrix, [[1]])
