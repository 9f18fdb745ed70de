"""How ``run`` prints answers."""

from __future__ import annotations

import pytest

from weightpager.answers.kinds.kind import Prediction
from weightpager.cli.running.run_command import _answers


@pytest.mark.parametrize(
    ("predictions", "printed"),
    [
        ([Prediction("a", "spam", 0.5), Prediction("b", "other", 0.25)], "spam  (50.0%)\nother  (25.0%)"),
        ([Prediction("a", "one two"), Prediction("b", "")], "one two\n"),
        ([Prediction("a", "one\ntwo"), Prediction("b", "three")], "one\ntwo\n\nthree"),
        ([Prediction("a", "one\ntwo")], "one\ntwo"),
    ],
)
def test_answers_of_several_lines_are_told_apart(predictions: list[Prediction], printed: str) -> None:
    assert _answers(predictions) == printed
