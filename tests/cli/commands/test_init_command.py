from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import tiny
import weightpager as wp
from command import Command
from json_lines import rows
from weightpager.compiler.task_file.file import TaskFile, load


@pytest.mark.slow
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
    starter = load("tasks.yaml")
    assert (starter.dtype, starter.sparsity_of("spam")) == ("int4", 0.75)


@pytest.mark.parametrize(
    ("config", "writes"),
    [
        ({"architectures": ["Qwen2ForCausalLM"]}, True),
        ({"architectures": ["GPT2LMHeadModel"]}, True),
        ({"architectures": ["BertModel"]}, False),
        ({"architectures": "LlamaForCausalLM"}, False),
        ([], False),
    ],
)
def test_a_decoder_has_a_task_that_writes(weightpager: Command, tmp_path: Path, config: object, writes: bool) -> None:
    model, folder = tmp_path / "model", tmp_path / "new"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(config))
    assert weightpager("init", folder, "--model", model).code == 0
    tasks = load(folder / "tasks.yaml").tasks
    assert list(tasks) == ["spam", "places", *["german"][: int(writes)]]
    assert (folder / "german.train.jsonl").exists() == writes
    if writes:
        assert (tasks["german"].kind, tasks["german"].metrics) == ("text-generation", ("chrf", "exact-match"))
        for file in (tasks["german"].train, tasks["german"].eval):
            assert all(row.keys() == {"prompt", "completion"} for row in rows(file))


def test_nothing_is_overwritten(weightpager: Command, tmp_path: Path) -> None:
    (tmp_path / "spam.test.jsonl").write_text("mine")
    found = weightpager("init", tmp_path)
    assert (found.code, "spam.test.jsonl" in found.err) == (2, True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    no_folder = weightpager("init", tmp_path / "file")
    assert (no_folder.code, "expected a folder" in no_folder.err) == (2, True)


def test_what_is_in_the_way_is_named(weightpager: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "tasks.yaml").symlink_to("nowhere")
    for folder, words in {
        "file": f"found a file at {tmp_path / 'file'}; name another DIR",
        "file/new": "Not a directory; nothing was written",
        "link": f"found a link that leads to none at {tmp_path / 'link'}",
        "": f"expected none of these files in {tmp_path}, found tasks.yaml;",
        "a" * 300: "File name too long; nothing was written",
    }.items():
        found = weightpager("init", tmp_path / folder)
        assert (found.code, found.out) == (2, "")
        assert words in found.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "tasks.yaml"]


def test_what_a_full_disk_takes_is_removed_again(weightpager: Command, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['weightpager', 'init', {str(tmp_path / 'new' / 'here')!r}]\n"
    code += "from weightpager.cli import main; main()"
    limited = ["bash", "-c", 'ulimit -f 8; exec "$@"', "bash", sys.executable, "-Bc", code]
    found = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert f"init: cannot write into {tmp_path / 'new' / 'here'}: File too large; nothing was written" in found.stderr
    assert list(tmp_path.iterdir()) == []
    assert weightpager("init", tmp_path / "new" / "here").code == 0


@pytest.mark.parametrize("name", ["m🤖del", "mod\x7fel", "mod\u2028 el\x85", "mod\n\"'el\\"])
def test_a_model_of_any_name_is_found(weightpager: Command, tmp_path: Path, name: str) -> None:
    model = tmp_path / name
    model.mkdir()
    (model / "config.json").write_text("{}")
    assert weightpager("init", tmp_path / "new", "--model", model).code == 0
    assert load(tmp_path / "new" / "tasks.yaml").model == model


def test_a_model_whose_name_is_no_text_is_refused(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("init", tmp_path / "new", "--model", tmp_path / "\udcff")
    assert (found.code, "expected a path of Unicode text" in found.err) == (2, True)
    assert not (tmp_path / "new").exists()


def test_schema_is_the_one_that_the_starter_names(weightpager: Command, tmp_path: Path) -> None:
    weightpager("init", tmp_path)
    first = (tmp_path / "tasks.yaml").read_text().splitlines()[0]
    schema = tmp_path / first.partition("$schema=")[2]
    assert weightpager("schema").out == schema.read_text(encoding="utf-8")


def test_a_budget_stands_in_the_task_file(weightpager: Command, tmp_path: Path) -> None:
    assert started(weightpager, tmp_path / "a", "--fit", "5 MiB").fit == 5 << 20
    assert started(weightpager, tmp_path / "b").fit is None
    refused = weightpager("init", tmp_path / "c", "--fit", "much")
    assert refused.code == 2
    assert "fit: expected a number with a unit" in refused.err
    assert not (tmp_path / "c").exists()


def started(weightpager: Command, folder: Path, *options: str) -> TaskFile:
    """The task file that is written."""
    assert weightpager("init", folder, "--model", tiny.bert(folder / "model"), *options).code == 0
    return load(folder / "tasks.yaml")


@pytest.mark.parametrize(("typed", "fit"), [("3MiB", 3 << 20), ("", None)])
def test_a_terminal_is_asked_for_the_budget(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str, fit: int | None
) -> None:
    asked: list[str] = []

    def answer(question: str, **_: object) -> str:
        asked.append(question)
        return typed

    monkeypatch.setattr("weightpager.cli.commands.init._at_a_terminal", lambda: True)
    monkeypatch.setattr("typer.prompt", answer)
    assert started(weightpager, tmp_path / "a").fit == fit
    assert len(asked) == 1
