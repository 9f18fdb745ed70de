"""How ``run`` prints answers."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest

from command import Command
from weightpager.answers.kinds import Prediction
from weightpager.bundle import Bundle
from weightpager.cli.commands.run import _answers


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


def test_repeats_are_timed_and_change_no_answer(weightpager: Command, assistant_bundle: Path) -> None:
    run = ("run", assistant_bundle, "--task", "animal", "red cat", "blue dog")
    once, again = weightpager(*run), weightpager(*run, "--repeat", 3)
    assert again.out == once.out
    assert "repeats" not in once.err
    assert re.search(r"2 answers in [\d.]+ ms \([\d.]+ ms to [\d.]+ ms in 3 repeats\)", again.err)
    found = json.loads(weightpager(*run, "--repeat", 3, "--json").out)
    assert len(found["seconds"]) == 3
    assert len(found["engine"]["switches"]) == 1


def test_repeats_of_a_text_that_is_written_tell_tokens_a_second(weightpager: Command, writer_bundle: Path) -> None:
    task = next(iter(Bundle.open(writer_bundle).tasks))
    run = ("run", writer_bundle, "--task", task, "--max-new-tokens", 4, "--repeat", 2, "the cat")
    (prediction,) = json.loads(weightpager(*run, "--json").out)["predictions"]
    assert 1 <= prediction["tokens"] <= 4
    assert re.search(r"1 answer in .* \d+ tokens a second, prompts' reading included", weightpager(*run).err)


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
