import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.errors import ConfigError
from weightpager.transitions import Transitions, read_trace

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


@pytest.mark.parametrize("smoothing", [-1.0, float("nan"), float("inf")])
def test_a_smoothing_that_is_no_count_is_refused(smoothing: float) -> None:
    with pytest.raises(ConfigError, match="smoothing"):
        Transitions.from_trace(TASKS, [], smoothing)


def test_a_visit_to_an_unknown_task_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected one of spam, topic, pos, got 'spma'"):
        Transitions.from_trace(TASKS, ["spam", "spma"])


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_a_trace_is_read_in_order(tmp_path: Path) -> None:
    timed, untimed = [{"task": "spam", "time": 0}, {"task": "pos", "time": 3.5}], [{"task": "topic", "time": None}]
    rows = [*timed, *untimed, {"task": "spam"}, {"task": "spam", "time": 3.5}]
    path = write(tmp_path / "day.jsonl", *map(json.dumps, rows))
    assert read_trace(path) == read_trace(str(path), TASKS) == ["spam", "pos", "topic", "spam", "spam"]
    assert read_trace(write(tmp_path / "empty.jsonl")) == []


def test_no_switch_leads_over_a_gap(tmp_path: Path) -> None:
    """Such as a restart, which a history marks."""
    path = tmp_path / "trace.jsonl"
    rows = [("spam", False), ("topic", False), ("pos", True), ("spam", False)]
    path.write_text("".join(json.dumps({"task": task, "resumed": resumed}) + "\n" for task, resumed in rows))
    visits = read_trace(path, TASKS)
    assert visits == ["spam", "topic", None, "pos", "spam"]
    counted = Transitions.from_trace(TASKS, visits, smoothing=0).matrix
    assert counted[TASKS.index("topic"), TASKS.index("pos")] == pytest.approx(1 / (len(TASKS) - 1))
    assert counted[TASKS.index("pos"), TASKS.index("spam")] == 1.0
    path.write_text('{"task": "spam", "resumed": 1}\n')
    with pytest.raises(ConfigError, match="expected true or false for resumed"):
        read_trace(path, TASKS)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("spam", "expected a JSON object, got b'spam'"),
        ("", "expected a JSON object"),
        ("[" * 100_000, "expected a JSON object"),
        ('["spam"]', "expected a JSON object"),
        ('{"time": 3}', "expected a task's name, got None"),
        ('{"task": 7}', "expected a task's name, got 7"),
        ('{"task": "spma"}', "expected one of spam, topic, pos, got 'spma'"),
        ('{"task": "spam", "tmie": 3}', "expected the keys task and time, got 'tmie'"),
        ('{"task": "spam", "time": "3"}', "expected a time in seconds, got 3"),
        ('{"task": "spam", "time": true}', "expected a time in seconds, got True"),
        ('{"task": "spam", "time": NaN}', "expected a time in seconds, got nan"),
        ('{"task": "spam", "time": 1' + "0" * 400 + "}", "expected a time in seconds, got 1000"),
        ('{"task": "spam", "time": 1.5}', "expected a time from 2.0 up, got 1.5"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = write(tmp_path / "day.jsonl", '{"task": "spam", "time": 2}', '{"task": "pos"}', line)
    with pytest.raises(ConfigError) as raised:
        read_trace(path, TASKS)
    assert str(raised.value).startswith(f"{path}:3: {expected}")


def test_a_trace_that_is_not_text_or_not_there_is_named(tmp_path: Path) -> None:
    binary = tmp_path / "binary.jsonl"
    binary.write_bytes(b"\xff\x00\x80")
    with pytest.raises(ConfigError, match=r"binary\.jsonl:1: expected a JSON object"):
        read_trace(binary)
    with pytest.raises(ConfigError, match=r"absent\.jsonl: expected a readable trace file"):
        read_trace(tmp_path / "absent.jsonl")


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
