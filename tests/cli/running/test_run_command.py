"""How ``run`` prints answers."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from command import Command
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


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_a_line_that_is_not_utf8_is_named(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, errors: str
) -> None:
    lines = io.TextIOWrapper(io.BytesIO(b"red cat\ncaf\xe9\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr(sys, "stdin", lines)
    found = weightpager("run", assistant_bundle, "--task", "animal")
    assert (found.code, found.out) == (2, "")
    assert "error: run: line 2 of standard input isn't UTF-8; convert it" in found.err


def test_an_empty_text_is_a_text_wherever_it_comes_from(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ("run", assistant_bundle, "--task", "animal")
    argument = weightpager(*run, "")
    assert argument.code == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert weightpager(*run).out == argument.out
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    refused = weightpager(*run)
    assert (refused.code, refused.out) == (2, "")
    assert "expected a text as argument or on standard input" in refused.err
