from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import Command

import tiny
import weightpager as wp
from weightpager.compiler.task_file import load


def test_a_starter_is_a_task_file_that_compiles(weightpager: Command, tmp_path: Path) -> None:
    model = tiny.bert(tmp_path / "a model: 'x'")
    found = weightpager("init", tmp_path / "new" / "here", "--model", model)
    assert found.code == 0
    assert "next: replace the sample data" in found.err
    tasks = tmp_path / "new" / "here" / "tasks.yaml"
    task_file = load(tasks)
    assert list(task_file.tasks) == ["spam", "places"]
    assert task_file.model == model
    short = "training: {steps: 2, batch: 2}\nblock: 8x8\npage: 4KiB\n"
    tasks.write_text(tasks.read_text().replace("recover: finetune", "recover: closed-form") + short)
    bundle = wp.compile(tasks, out=tmp_path / "a.bundle")
    assert bundle.task("places").classes == ["O", "PLACE"]


def test_a_starter_without_a_model_says_what_is_missing(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = weightpager("init", "--json")
    names = json.loads(found.out)["files"]
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    refused = weightpager("compile", "tasks.yaml", "--out", "a.bundle")
    assert refused.code == 2
    assert "hf download" in refused.err
    tiny.bert(tmp_path / "model")
    assert load("tasks.yaml").sparsity == 0.75


def test_nothing_is_overwritten(weightpager: Command, tmp_path: Path) -> None:
    (tmp_path / "spam.test.jsonl").write_text("mine")
    found = weightpager("init", tmp_path)
    assert (found.code, "spam.test.jsonl" in found.err) == (2, True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    no_folder = weightpager("init", tmp_path / "file")
    assert (no_folder.code, "expected a folder" in no_folder.err) == (2, True)


def test_schema_is_the_one_that_the_starter_names(weightpager: Command, tmp_path: Path) -> None:
    weightpager("init", tmp_path)
    first = (tmp_path / "tasks.yaml").read_text().splitlines()[0]
    schema = tmp_path / first.partition("$schema=")[2]
    assert weightpager("schema").out == schema.read_text(encoding="utf-8")
