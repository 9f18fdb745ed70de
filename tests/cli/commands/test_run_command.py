"""How ``run`` prints answers."""

from __future__ import annotations

import base64
import io
import json
import re
import sys
from pathlib import Path

import pytest

import tiny
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


def test_questions_are_about_the_same_pictures(weightpager: Command, watcher_bundle: Path, tmp_path: Path) -> None:
    files = [tiny.picture(tmp_path / f"{colour}.png", colour, "asked", (40, 33)) for colour in ("red", "blue")]
    run = ("run", watcher_bundle, "--task", "number", "--image", files[0], "--image", files[1])
    found = json.loads(weightpager(*run, "one", "two red", "--json").out)
    assert found["engine"]["features"] == {"kept": 2, "bytes": 1536, "hits": 2, "misses": 2, "evicted": 0}
    assert [answer["text"] for answer in found["predictions"]] == ["one", "two red"]
    alone = json.loads(weightpager(*run, "two red", "--json").out)
    assert alone["predictions"] == found["predictions"][1:]
    told = json.loads(weightpager(*run, "--system", "cow", "two red", "--json").out)
    assert told["predictions"][0]["text"] == "two red"
    without = json.loads(weightpager("run", watcher_bundle, "--task", "number", "two red", "--json").out)
    assert without["engine"]["features"]["misses"] == 0


def test_pictures_that_cannot_be_used_are_named(
    weightpager: Command, watcher_bundle: Path, writer_bundle: Path, tmp_path: Path
) -> None:
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    ask = ("run", watcher_bundle, "--task", "number", "--image", tmp_path / "damaged.png")
    failed = weightpager(*ask, "red")
    assert "text 1 of 1: picture 1 of 1: expected an image" in failed.err
    for address in ("http://example.org/frame.png", "https://example.org//frame.png"):
        failed = weightpager("run", watcher_bundle, "--task", "number", "--image", address, "red")
        assert f"nothing is fetched from an address, found '{address}'" in failed.err
    failed = weightpager("run", writer_bundle, "--task", "animals", "--image", tmp_path / "damaged.png", "red")
    assert "run: expected texts, since animals reads texts, found '--image'" in failed.err


def test_a_picture_may_come_as_a_data_url(weightpager: Command, watcher_bundle: Path, tmp_path: Path) -> None:
    file = tiny.picture(tmp_path / "red.png", "red", "asked", (40, 33))
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    answers = [
        weightpager("run", watcher_bundle, "--task", "number", "--image", image, "red").out for image in (file, url)
    ]
    assert answers[0] == answers[1] != ""


def test_inspect_and_plan_tell_of_the_picture_tower(
    weightpager: Command, watcher_bundle: Path, writer_bundle: Path
) -> None:
    shown = weightpager("inspect", watcher_bundle).out
    assert "picture tower (2 layers, the same for all tasks)" in shown
    assert "features of a picture (4 tokens)" in shown
    told = json.loads(weightpager("inspect", watcher_bundle, "--json").out)["pictures"]
    assert told["stored_bytes"] % 4096 == 0 < told["stored_bytes"]
    assert {name: told[name] for name in ("blocks", "layers", "picture_tokens", "kept_bytes")} == {
        "blocks": "shared", "layers": 2, "picture_tokens": 4, "kept_bytes": 768,
    }  # fmt: skip
    assert json.loads(weightpager("plan", watcher_bundle, "--to", "animal", "--json").out)["feature_bytes"] == 1536
    assert "pictures" not in json.loads(weightpager("inspect", writer_bundle, "--json").out)
    assert "feature_bytes" not in json.loads(weightpager("plan", writer_bundle, "--to", "animals", "--json").out)
