"""What every predictor promises, and what each can and can't tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.prediction import FirstOrderPredictor, FrequencyPredictor
from weightpager.runtime.prediction.markov import MarkovPredictor
from weightpager.runtime.prediction.planner import CallablePredictor
from weightpager.runtime.prediction.predictor import (
    Forecast,
    LearningPredictor,
    PredictionScore,
    TransitionPredictor,
    replay,
)
from weightpager.trace_file import Visit

MakePredictor = Callable[..., LearningPredictor]

LEARNERS: list[MakePredictor] = [FrequencyPredictor, FirstOrderPredictor, MarkovPredictor]


def planned(tasks: int) -> CallablePredictor:
    names = [str(number) for number in range(tasks)]
    return CallablePredictor(lambda visits: {names[-1]: 3.0, names[0]: 1.0}, names, FirstOrderPredictor(tasks))


MAKERS: list[Callable[[int], TransitionPredictor]] = [*LEARNERS, planned]


def score(predictor: TransitionPredictor, tasks: Sequence[int], skip: int = 0) -> PredictionScore:
    """Of forecasts in the middle of every visit but the first ``skip``, all one second long."""
    found = PredictionScore()
    for step, task in enumerate(tasks):
        if step > skip:
            found.add(predictor.forecast(step - 0.5), task)
        predictor.observe(task, float(step))
    return found


@pytest.mark.parametrize("make", MAKERS)
@given(
    tasks=st.integers(1, 6),
    steps=st.lists(st.tuples(st.integers(0, 5), st.floats(-1e3, 1e10)), max_size=40),
    elapsed=st.floats(-1e6, 1e12),
)
def test_forecasts_are_distributions_without_the_current_task(
    make: Callable[[int], TransitionPredictor], tasks: int, steps: list[tuple[int, float]], elapsed: float
) -> None:
    predictor = make(tasks)
    current = None
    for number, seconds in [*steps, (0, 0.0)]:
        found = predictor.forecast(seconds + elapsed)
        assert found.next.shape == (tasks,)
        assert (found.next >= 0).all()
        assert found.next.sum() == pytest.approx(1.0) or (tasks == 1 and current is not None and not found.next.any())
        assert current is None or found.next[current] == 0
        assert found.seconds is None or (math.isfinite(found.seconds) and found.seconds >= 0)
        current = number % tasks
        predictor.observe(current, seconds)


@pytest.mark.parametrize("make", LEARNERS)
@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=4, max_size=4), data=st.data())
def test_any_prior_is_where_a_predictor_starts(make: MakePredictor, rows: list[list[int]], data: st.DataObject) -> None:
    weights = np.array(rows, float) * (1 - np.eye(4)) + 1e-9 * (1 - np.eye(4))
    prior = weights / weights.sum(axis=1, keepdims=True)
    predictor = make(4, prior)
    predictor.observe(2, 0.0)
    np.testing.assert_allclose(predictor.forecast(1.0).next, prior[2], atol=1e-12)
    for step, task in enumerate(data.draw(st.lists(st.integers(0, 3), max_size=30)), 1):
        predictor.observe(task, float(step))
        assert predictor.forecast(step + 0.5).next.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("make", LEARNERS)
def test_a_prior_that_rules_out_what_comes_is_overcome(make: MakePredictor) -> None:
    predictor = make(3, [[0, 1, 0], [1, 0, 0], [1, 0, 0]])
    assert score(predictor, [0, 2] * 20, skip=20).log_loss < 0.5


def test_order_two_tells_what_order_one_cannot() -> None:
    turns = [0, 1, 0, 2] * 50
    assert score(FirstOrderPredictor(4), turns, skip=100).hit_rate < 0.6
    found = score(MarkovPredictor(4), turns, skip=100)
    assert found.hit_rate == 1.0
    assert found.log_loss < 0.1


def test_a_changed_pattern_is_relearnt_within_fifty_switches() -> None:
    predictor = MarkovPredictor(8)
    before, after = [0, 1, 2, 3, 4, 5, 6, 7], [0, 3, 6, 1, 4, 7, 2, 5]
    score(predictor, before * 60)
    for step, task in enumerate(after * 6):
        predictor.observe(task, 480.0 + step)
    found = PredictionScore()
    for step, task in enumerate(after * 2):
        found.add(predictor.forecast(528.5 + step), task)
        predictor.observe(task, 529.0 + step)
    assert found.hit_rate == 1.0
    assert found.log_loss < 0.5


def test_what_is_left_of_a_visit_goes_by_the_visits_before() -> None:
    predictor = MarkovPredictor(3)
    for task, seconds in ((0, 0.0), (1, 10.0), (0, 12.0), (1, 32.0), (2, 34.0)):
        predictor.observe(task, seconds)
    assert predictor.forecast(35.0).seconds == pytest.approx((30.0 + 4.0) / 4 - 1.0)  # as long as any
    predictor.observe(0, 40.0)
    assert predictor.forecast(43.0).seconds == pytest.approx(15.0 - 3.0)
    assert predictor.forecast(99.0).seconds == 0.0
    assert predictor.forecast(39.0).seconds == pytest.approx(15.0)


def test_elapsed_time_says_nothing_where_all_visits_are_alike() -> None:
    predictor, now = MarkovPredictor(5), 0.0
    random = np.random.default_rng(0)
    for task in [0, 1, 0, 2, 0, 3, 0, 4] * 40:
        predictor.observe(task, now)
        now += random.lognormal(0.0, 0.5)
    predictor.observe(0, now)
    soon, late = predictor.forecast(now), predictor.forecast(now + 2.0)
    np.testing.assert_allclose(late.next, soon.next, atol=0.03)


def test_a_visit_longer_than_all_others_changes_nothing_about_what_is_next() -> None:
    predictor = MarkovPredictor(3)
    score(predictor, [0, 1, 0, 2] * 20)
    predictor.observe(0, 80.0)
    soon, late = predictor.forecast(80.0), predictor.forecast(80.0 + 1e9)
    np.testing.assert_allclose(late.next, soon.next, atol=0.02)


@pytest.mark.parametrize("make", LEARNERS)
def test_what_cannot_be_observed_is_refused(make: MakePredictor) -> None:
    for task, seconds in ((-1, 0.0), (3, 0.0), (0, math.nan), (0, math.inf)):
        with pytest.raises(ValueError, match="expected a task from 0 to 2 at a finite time"):
            make(3).observe(task, seconds)


@pytest.mark.parametrize("prior", [[[0.5, 0.5], [1, 0]], [[0, 2], [1, 0]], [[1.0]]])
def test_a_prior_that_is_no_transition_matrix_is_refused(prior: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="expected a prior"):
        MarkovPredictor(2 + (prior == [[0.5, 0.5], [1, 0]]), prior)


def test_replay_renumbers_and_skips_what_is_gone() -> None:
    visits = [Visit(name, float(step)) for step, name in enumerate("abcabcabcxab")]
    predictor = FirstOrderPredictor(4)
    replay(predictor, visits, ["new", "c", "b", "a"])
    predictor.observe(1, 20.0)
    assert predictor.forecast(20.0).likeliest == 3  # c is followed by a, never by the x that is gone
    names = ["a", "b", "c", "x"]
    whole = FirstOrderPredictor(4)
    replay(whole, visits, names)
    whole.observe(names.index("c"), 20.0)
    assert whole.forecast(20.0).next[3] > 0.2


def test_a_gap_is_neither_a_switch_nor_a_dwell() -> None:
    predictor = MarkovPredictor(3)
    replay(predictor, [Visit("a", 0.0), Visit("b", 1.0, resumed=True), Visit("a", 1e6, resumed=True)], ["a", "b", "c"])
    found = predictor.forecast(1e6)
    assert found.next.tolist() == [0, 0.5, 0.5]
    assert found.seconds is None


class Planner:
    """Answers what it is told to."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.seen: Sequence[Visit] = ()

    def __call__(self, visits: Sequence[Visit]) -> dict[str, float]:
        self.seen = visits
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def asked(answer: object) -> tuple[Forecast, Planner, Forecast]:
    """What is forecast with such an answer, and what the fallback says."""
    planner, fallback = Planner(answer), FirstOrderPredictor(3)
    predictor = CallablePredictor(planner, ["a", "b", "c"], fallback)
    for step, task in enumerate([0, 1, 1, 0, 1, 0]):
        predictor.observe(task, float(step))
    return predictor.forecast(6.0), planner, fallback.forecast(6.0)


def test_a_planners_weights_become_probabilities() -> None:
    found, planner, _ = asked({"a": 100, "b": np.float32(1.0), "c": 3})
    assert found.next.tolist() == [0.0, 0.25, 0.75]
    assert [visit.task for visit in planner.seen] == list("ababa")
    assert planner.seen[-1] == Visit("a", 5.0)
    assert asked({"b": 1e308, "c": 1e308})[0].next.tolist() == [0.0, 0.5, 0.5]


@pytest.mark.parametrize(
    "answer",
    [None, ["b"], {"x": 1.0}, {"b": math.nan}, {"b": math.inf}, {"b": -1.0}, {"b": "1"}, {"b": True}, {1: 1.0},
     {"b": 10**400}, RuntimeError("lost")],
)  # fmt: skip
def test_a_bad_answer_falls_back(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, _, fallback = asked(answer)
    assert found.next.tolist() == fallback.next.tolist()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("answer", [{}, {"b": 0.0}, {"a": 1.0}])
def test_a_planner_may_not_know(answer: object, caplog: pytest.LogCaptureFixture) -> None:
    found, _, fallback = asked(answer)
    assert found.next.tolist() == fallback.next.tolist()
    assert not caplog.records


def test_a_planner_that_stays_bad_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    predictor = CallablePredictor(Planner(None), ["a", "b"], FirstOrderPredictor(2))
    predictor.forecast(0.0)
    predictor.forecast(1.0)
    assert len(caplog.records) == 1


def test_a_planner_sees_a_bounded_history_and_its_gaps() -> None:
    planner = Planner({"b": 1.0})
    predictor = CallablePredictor(planner, ["a", "b"], FirstOrderPredictor(2), limit=3)
    replay(predictor, [Visit(name, 0.0, name == "b") for name in "abaab"], ["a", "b"])
    predictor.forecast(1.0)
    assert [(visit.task, visit.resumed) for visit in planner.seen] == [("b", True), ("a", False), ("b", True)]


def test_memory_is_bounded() -> None:
    predictor = MarkovPredictor(12, capacity=20)
    score(predictor, np.random.default_rng(1).integers(0, 12, 1500).tolist())
    assert max(len(counts) for orders in predictor._counts for counts in orders) == 20


def test_the_score_is_in_bits() -> None:
    found = PredictionScore()
    assert (found.log_loss, found.hit_rate) == (0.0, 0.0)
    found.add(Forecast(np.array([0.0, 0.75, 0.25]), None), 2)
    assert (found.log_loss, found.hit_rate) == (2.0, 0.0)
    found.add(Forecast(np.array([0.0, 1.0, 0.0]), None), 1)
    assert (found.log_loss, found.hit_rate, found.forecasts) == (1.0, 0.5, 2)
    found.add(Forecast(np.array([0.0, 1.0, 0.0]), None), 2)
    assert found.bits == 22.0
    found.add(Forecast(np.zeros(3), None), 2)
    assert found.bits == 23.0
