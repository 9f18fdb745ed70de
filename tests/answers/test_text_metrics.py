"""Metrics of generated texts, against values worked out by hand and by their libraries."""

from __future__ import annotations

from typing import get_args

import pytest

from weightpager.answers.text_metrics import text_scores
from weightpager.bundle.format.manifest import TextMetric


def score(metric: TextMetric, ours: str, theirs: str) -> float:
    return text_scores([metric], [ours], [theirs])[0][0]


@pytest.mark.parametrize("metric", get_args(TextMetric))
def test_the_same_text_is_right_and_another_one_wrong(metric: TextMetric) -> None:
    assert score(metric, " Guten Tag\n", "Guten Tag") == pytest.approx(1)
    assert score(metric, "", "Guten Tag") == 0
    assert score(metric, "xyz", "Guten Tag") == 0


def test_words_in_common() -> None:
    assert score("token-f1", "the cat sat", "the cat") == pytest.approx(2 * 2 / 5)
    assert score("token-f1", "the the", "the cat") == pytest.approx(0.5)
    assert score("token-f1", "The cat", "the cat") == pytest.approx(0.5)  # case counts


def test_rouge_counts_the_longest_common_subsequence() -> None:
    assert score("rouge-l", "police killed the gunman", "police kill the gunman") == pytest.approx(0.75)
    assert score("rouge-l", "the gunman kill police", "police kill the gunman") == pytest.approx(0.5)


def test_chrf_is_sacrebleus() -> None:
    from sacrebleu import sentence_chrf

    found = score("chrf", "Bitte wählen Sie", "Bitte wähle aus")
    assert found == pytest.approx(sentence_chrf("Bitte wählen Sie", ["Bitte wähle aus"]).score / 100)
    assert 0.3 < found < 0.9


def test_several_metrics_are_in_the_order_of_their_names() -> None:
    assert text_scores(["exact-match", "token-f1"], ["a b", "c"], ["a", "c"]) == [[0, pytest.approx(2 / 3)], [1, 1]]
