"""What is found before hours are spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny as whole
import tiny_models as tiny
import weightpager as wp
from weightpager.compiler import task_file
from weightpager.compiler.prepare import prepare
from weightpager.errors import CompileError, WeightpagerError


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_words_that_only_the_tokenizer_knows_are_refused(tmp_path: Path, kind: str) -> None:
    tiny.bert(tmp_path / "model", vocab_size=len(tiny.WORDS) - 4)  # film, the, one and two are new
    content = {"model": "model", "calibration": {"max_length": 32}, "tasks": tiny.tasks(tmp_path, kind)}
    expected = rf"tasks\.{kind}: expected words that the model knows, with ids below 10, found '(film|the)', 1\d; give"
    with pytest.raises(CompileError, match=expected):
        prepare(task_file.from_dict(content, tmp_path))


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("text-classification", {"txt": "a film", "label": "good"}, "expected a column 'text', found label, txt"),
        ("token-classification", {"tokens": ["a"], "tags": ["X", "Y"]}, "row 1: expected one tag per token"),
        ("language-modeling", {"txt": "a film"}, "expected a column 'text', found txt"),
        ("text-generation", {"prompt": "a"}, "expected columns 'prompt' and 'completion', or 'messages', found prompt"),
        ("text-generation", {"prompt": 1, "completion": "b"}, "row 1: expected a prompt that is text or a list"),
    ],
)
def test_rows_of_a_wrong_form_are_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, row: dict[str, object], expected: str
) -> None:
    monkeypatch.setattr("weightpager.compiler.prepare.load_dense", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}", encoding="utf-8")
    files = {split: str(tiny.jsonl(tmp_path / f"{split}.jsonl", [row])) for split in ("train", "eval")}
    content = {"model": "model", "tasks": {"odd": {"kind": kind, **files}}}
    with pytest.raises(CompileError, match=rf"tasks\.odd\.train .*: {expected}"):
        prepare(task_file.from_dict(content, tmp_path))


def text(label: str) -> dict[str, str]:
    return {"text": "a film", "label": label}


def image(path: str, label: str) -> dict[str, str]:
    return {"image": path, "label": label}


TWO = [text("good"), text("bad")]
SEEN = [image("red.png", "red"), image("blue.png", "blue")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ({"eval": [text("god")]}, r"eval .*: row 1: expected one of the labels bad, good, found 'god'"),
        ({"train": [text("good")]}, r"train .*: expected at least two different labels, found good"),
        ({"validation": []}, r"validation .*: expected at least one row, found an empty file"),
        ({"train": SEEN, "eval": [image("no.png", "red")]}, r"eval.*: expected an image, found no file at"),
        ({"train": SEEN, "eval": [image("red.png", "rot")]}, r"eval .*: row 1: expected one of the labels blue, red"),
        ({"train": SEEN, "eval": [image("flat.ppm", "red")]}, r"eval .*: image 1 .*: .*, or one without pixels"),
        ({"train": SEEN, "eval": [{"image": "red.png"}]}, r"eval: expected a column 'label'"),
        ({"head": ["up", "down"]}, r"train .*: row 1: expected one of the labels up, down, found 'good'"),
    ],
)
def test_files_and_labels_are_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: dict[str, list[Any]], expected: str
) -> None:
    monkeypatch.setattr("weightpager.compiler.prepare.load_dense", None)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "flat.ppm").write_bytes(b"P6 16 0 255\n")
    for colour in ("red", "blue"):
        whole.picture(tmp_path / f"{colour}.png", colour)
    data = {"train": TWO, "eval": TWO} | rows
    task: dict[str, Any] = {"kind": "image-classification" if rows.get("train") is SEEN else "text-classification"}
    if names := data.pop("head", None):
        task["head"] = "head"
        (tmp_path / "head").mkdir()
        config = {"model_type": "bert", "id2label": dict(enumerate(names))}
        (tmp_path / "head/config.json").write_text(json.dumps(config), encoding="utf-8")
    task |= {split: str(tiny.jsonl(tmp_path / f"{split}.jsonl", lines)) for split, lines in data.items()}
    with pytest.raises(CompileError, match=rf"tasks\.odd\.{expected}"):
        prepare(task_file.from_dict({"model": "model", "tasks": {"odd": task}}, tmp_path))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"transitions": "trace.jsonl"}, r"trace\.jsonl:2: expected one of"),
        ({"recover": {"method": "finetune", "steps": 2, "low_rank": 200}}, "recover.low_rank: expected at most"),
    ],
)
def test_what_can_be_known_is_said_before_anything_is_trained(
    tmp_path: Path, change: dict[str, object], expected: str
) -> None:
    rows = [{"task": "animal", "time": 1}, {"task": "nobody", "time": 2}]
    tiny.jsonl(tmp_path / "trace.jsonl", rows)
    tasks = whole.assistant(tmp_path, **change)
    if "transitions" in tasks:
        tasks["transitions"] = str(tmp_path / "trace.jsonl")
    stages: list[str] = []
    with pytest.raises(WeightpagerError, match=expected):
        wp.compile(tasks, out=tmp_path / "a.bundle", progress=lambda stage, done, total: stages.append(stage))
    assert stages == []
