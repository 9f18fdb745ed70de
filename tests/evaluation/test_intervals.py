"""Intervals of metrics and of differences between two models on the same items."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from weightpager import evaluation
from weightpager.answers.kinds import kind_of
from weightpager.answers.score import Outcomes, Score
from weightpager.bundle import TaskKind
from weightpager.bundle.report.advice import holds_zero
from weightpager.bundle.report.compile_report import CONFIDENCE, UNKNOWN


def accuracy(right: list[int]) -> Score:
    return Score("accuracy", sum(right) / len(right), len(right), outcomes(right, [1] * len(right)))


def perplexity(nats: list[float], tokens: int = 10) -> Score:
    counts = [tokens] * len(nats)
    value = math.exp(min(700.0, sum(nats) / sum(counts)))
    return Score("perplexity", value, sum(counts), outcomes(nats, counts))


def outcomes(sums: list[int] | list[float], counts: list[int]) -> Outcomes:
    return Outcomes(np.array(sums, np.float64), np.array(counts, np.int64))


def gap(ours: Score, other: Score) -> tuple[float, float]:
    return evaluation.of_gap(ours, other, ours)


def test_a_share_has_wilsons_interval() -> None:
    assert evaluation.of_score(accuracy([1] * 8 + [0] * 2)) == pytest.approx((0.490, 0.943), abs=1e-3)
    assert evaluation.of_score(accuracy([1] * 4))[0] < 0.55


def test_words_of_one_text_hang_together() -> None:
    """Texts that are right or wrong as a whole tell as much as that many words, not as all of theirs."""
    texts = [1, 0] * 20
    whole = Score("token accuracy", 0.5, 400, outcomes([10 * right for right in texts], [10] * 40))
    low, high = evaluation.of_score(whole)
    assert (low, high) == pytest.approx(evaluation.of_score(accuracy(texts)), abs=0.03)


@pytest.mark.parametrize(("differ", "apart"), [(0, False), (1, False), (4, False), (7, True)])
def test_as_few_differences_as_chance_makes_tell_nothing(differ: int, apart: bool) -> None:
    """A sign test asks for six of six: even five, all in one direction, are chance in more than one of twenty cases."""
    ours, other = accuracy([1] * 60), accuracy([0] * differ + [1] * (60 - differ))
    low, high = gap(ours, other)
    assert low <= 100 * differ / 60 <= high
    assert holds_zero((low, high)) is not apart


def test_models_that_always_agree_may_still_differ() -> None:
    low, high = gap(accuracy([1, 0, 1, 1]), accuracy([1, 0, 1, 1]))
    assert low < -20
    assert high > 20
    low, high = gap(accuracy([1, 0] * 1000), accuracy([1, 0] * 1000))
    assert -0.3 < low <= 0 <= high < 0.3


def test_pairs_tell_more_than_two_intervals() -> None:
    """Two models with the same mistakes, and ten more of one: apart, though their own intervals overlap."""
    ours, other = accuracy([1] * 150 + [0] * 50), accuracy([1] * 140 + [0] * 60)
    assert evaluation.of_score(ours)[0] < evaluation.of_score(other)[1]
    assert not holds_zero(gap(ours, other))
    low, high = gap(ours, other)
    assert gap(other, ours) == pytest.approx((-high, -low), abs=1.0)


def test_perplexities_differ_in_percent_of_the_dense_one() -> None:
    dense = perplexity([10.0 + number % 3 for number in range(30)])
    worse = perplexity([nats + 1.0 for nats in dense.outcomes.sums.tolist()])
    low, high = evaluation.of_gap(dense, worse, dense)
    expected = 100 * (math.exp(0.1) - 1)
    assert low <= expected <= high
    assert high - low < 1  # each window has lost as much
    ends = evaluation.of_score(worse)
    assert ends[0] < worse.value < ends[1]


def test_five_windows_tell_nothing() -> None:
    few = perplexity([10.0] * 5)
    assert evaluation.of_score(few) == UNKNOWN
    assert gap(few, perplexity([20.0] * 5)) == UNKNOWN


@pytest.mark.parametrize("nats", [math.inf, math.nan, 1e300])
def test_a_hopeless_model_has_intervals(nats: float) -> None:
    hopeless, fine = perplexity([nats] * 20), perplexity([10.0] * 20)
    for found in (evaluation.of_score(hopeless), gap(fine, hopeless), gap(hopeless, fine)):
        assert found[0] <= found[1]


def test_other_items_are_no_pairs() -> None:
    assert gap(accuracy([1] * 60), accuracy([0] * 61)) == UNKNOWN
    assert gap(Score("accuracy", 0.5, 10), Score("accuracy", 0.5, 10)) == UNKNOWN


def test_every_metric_has_intervals() -> None:
    """Texts without a word that counts are left out."""
    for metric in {kind_of(kind).metric for kind in get_args(TaskKind)} - {"accuracy"}:
        score = Score(metric, 0.5, 60, outcomes([1.0] * 30 + [0.0], [2] * 30 + [0]))
        assert evaluation.of_score(score) != UNKNOWN
        assert evaluation.of_gap(score, score, score) != UNKNOWN


@pytest.mark.parametrize("right", [0, 1, 8, 10])
def test_wilsons_interval_is_that_of_scipy(right: int) -> None:
    expected = binomtest(right, 10).proportion_ci(CONFIDENCE, method="wilson")
    assert evaluation.of_score(accuracy([1] * right + [0] * (10 - right))) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_bootstrap_is_that_of_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_AT_ONCE", 1000)  # in several pieces
    drawn = np.random.default_rng(1)
    sums, counts = drawn.exponential(size=23), drawn.integers(1, 9, 23).astype(float)
    expected = bootstrap(
        (sums, counts),
        lambda sums, counts, axis: np.exp(sums.sum(axis) / counts.sum(axis)),
        paired=True,
        vectorized=True,
        confidence_level=CONFIDENCE,
        n_resamples=evaluation.RESAMPLES,
        batch=1000 // 23,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    score = Score("perplexity", 1.0, 23, Outcomes(sums, counts.astype(np.int64)))
    assert evaluation.of_score(score) == pytest.approx((expected.low, expected.high), rel=1e-12)
