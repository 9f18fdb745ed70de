"""What is found before hours are spent."""

from __future__ import annotations

from pathlib import Path

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
