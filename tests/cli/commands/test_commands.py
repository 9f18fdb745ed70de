from __future__ import annotations

import fcntl
import io
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tiny
import weightpager as wp
from command import Command
from weightpager.cli import output
from weightpager.store import StorageModel, all_switches, switch_cost


@pytest.fixture
def tasks_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.yaml"
    path.write_text(yaml.safe_dump(tiny.assistant(tmp_path), sort_keys=False))
    return path


@pytest.mark.slow
def test_compile_writes_a_bundle_and_says_what_came_out(weightpager: Command, tasks_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.bundle"
    found = weightpager("compile", tasks_yaml, "--out", out)
    assert found.code == 0
    assert "weather" in found.out
    for words in ("duality gap: how far", "alignment: λ, what a block", "overlap: share of"):
        assert words in found.out
    assert list(wp.Bundle.open(out).tasks) == ["animal", "weather", "number", "colour"]
    again = weightpager("compile", tasks_yaml, "--out", out)
    assert again.code == 2
    assert "--force" in again.err
    forced = weightpager("compile", tasks_yaml, "--out", out, "--force", "--json")
    assert forced.code == 0
    report = json.loads(forced.out)
    assert report["duality_gap"] <= 0.001
    assert {task["name"] for task in report["tasks"]} == {"animal", "weather", "number", "colour"}
    assert set(report["seconds"]) >= {"calibrate", "align", "pack", "write"}


def test_inspect(weightpager: Command, assistant_bundle: Path) -> None:
    found = weightpager("inspect", assistant_bundle)
    assert found.code == 0
    for word in ("animal", "overlap", "bytes to load", "resident parameters", "smallest budget"):
        assert word in found.out
    for words in ("over-read: share of a task's pages", "private: a task's own, such as its head"):
        assert words in found.out
    facts = json.loads(weightpager("inspect", assistant_bundle, "--json").out)
    bundle = wp.Bundle.open(assistant_bundle)
    assert facts["stored_paged_bytes"] == len(bundle.pages) * bundle.page_bytes
    assert 0 < facts["page_fill"] <= 1
    assert facts["switches"][0].keys() >= {"from_task", "to_task", "bytes", "reads"}


def stated_in(text: str, pattern: str) -> str:
    found = re.search(pattern + r"\D*(\d[\d.]* [KMG]?i?B)", text)
    assert found is not None, text
    return found[1]


def test_a_budget_that_is_printed_as_enough_is_enough(weightpager: Command, assistant_bundle: Path) -> None:
    shown = weightpager("inspect", assistant_bundle).out
    for fact in ("smallest budget for every task", "budget that holds everything"):
        stated = stated_in(shown, fact)
        facts = json.loads(weightpager("inspect", assistant_bundle, "--budget", stated, "--json").out)
        assert facts["tasks_that_do_not_fit"] == []
    for verb, *rest in (["run", "--task", "weather", "red cat rain"], ["plan", "--to", "animal"], ["plan", "--worst"]):
        refused = weightpager(verb, assistant_bundle, *rest, "--budget", "1KiB")
        assert refused.code == 1
        stated = stated_in(refused.err, r"smallest budget that would do is \d+ bytes \(")
        assert weightpager(verb, assistant_bundle, *rest, "--budget", stated).code == 0


@pytest.fixture(scope="module")
def unaligned_bundle(tmp_path_factory: pytest.TempPathFactory) -> wp.Bundle:
    """Tasks that share so little that not every two fit into the smallest budget."""
    folder = tmp_path_factory.mktemp("unaligned")
    return wp.compile(tiny.assistant(folder, alignment=0.0, sparsity=0.7), out=folder / "a.bundle")


def test_inspect_lists_what_does_not_fit_a_budget(
    weightpager: Command, unaligned_bundle: wp.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = unaligned_bundle.path
    smallest = json.loads(weightpager("inspect", bundle, "--json").out)["smallest_budget"]
    facts = json.loads(weightpager("inspect", bundle, "--budget", smallest, "--json").out)
    assert facts["tasks_that_do_not_fit"] == []
    assert facts["pairs_that_do_not_fit"]
    small = json.loads(weightpager("inspect", bundle, "--budget", "1KiB", "--json").out)
    assert small["tasks_that_do_not_fit"] == ["animal", "weather", "number", "colour"]
    shown = weightpager("inspect", bundle, "--budget", smallest).out
    (note,) = [line for line in shown.splitlines() if "don't fit together" in line]
    apart = facts["pairs_that_do_not_fit"]
    assert note.startswith(f"note: at {len(apart)} of 12 switches")
    assert f"({apart[0][0]} → {apart[0][1]}" in note
    assert note.endswith("which on a CPU is read and checked before the old task is given up.")
    sizes = {(each["from_task"], each["to_task"]): each["bytes"] for each in facts["switches"]}
    for limit in (0, sorted(sizes[pair] for pair in map(tuple, apart))[0]):
        monkeypatch.setattr("weightpager.cli.commands.inspect.SMALL_SWITCH_BYTES", limit)
        large = [pair for pair in map(tuple, apart) if sizes[pair] > limit]
        shown = weightpager("inspect", bundle, "--budget", smallest).out
        (note,) = [line for line in shown.splitlines() if "don't fit together" in line]
        assert "a failing read leaves no task active" in note
        assert (f"at {len(large)} of them" in note) is (limit > 0)


def test_plan(weightpager: Command, assistant_bundle: Path) -> None:
    plan = json.loads(weightpager("plan", assistant_bundle, "--from", "animal", "--to", "weather", "--json").out)
    start = json.loads(weightpager("plan", assistant_bundle, "--to", "weather", "--json").out)
    worst = json.loads(weightpager("plan", assistant_bundle, "--worst", "--json").out)
    bundle = wp.Bundle.open(assistant_bundle)
    assert start["bytes"] == len(bundle.pages_of("weather")) * bundle.page_bytes
    assert 0 < plan["bytes"] < start["bytes"]
    assert worst["at_most_ms"] >= plan["at_most_ms"] >= plan["predicted_ms"]
    slow = weightpager("plan", assistant_bundle, "--to", "weather", "--storage", "1MB/s", "--json")
    assert json.loads(slow.out)["predicted_ms"] > start["predicted_ms"]
    latency = ("--read-latency", "1.1ms", "--json")
    late = json.loads(weightpager("plan", assistant_bundle, "--to", "weather", *latency).out)
    assert late["predicted_ms"] - start["predicted_ms"] == pytest.approx(start["reads"])
    shown = weightpager("plan", assistant_bundle, "--to", "weather").out
    assert "pages to load" in shown
    assert re.search(r"it fits +│ +yes", shown)
    shown = weightpager("plan", assistant_bundle, "--from", "animal", "--to", "weather").out
    assert re.search(r"both tasks fit +│ +yes", shown)
    for bandwidth in ("300MB", "300MB/s"):
        shown = weightpager("plan", assistant_bundle, "--to", "weather", "--storage", bandwidth).out
        assert "predicted at 300MB/s and 0.1ms a read " in shown
    assert weightpager("plan", assistant_bundle).code == 2


def test_the_worst_switch_bounds_every_other(weightpager: Command, assistant_bundle: Path) -> None:
    bundle = wp.Bundle.open(assistant_bundle)
    worst = json.loads(weightpager("plan", assistant_bundle, "--worst", "--json").out)
    switches = all_switches(bundle, StorageModel())
    starts = [switch_cost(bundle, None, name, StorageModel()) for name in bundle.tasks]
    assert worst["at_most_ms"] == max(cost.most_seconds for cost in switches) * 1e3
    assert worst["from_empty"]["at_most_ms"] == max(cost.most_seconds for cost in starts) * 1e3
    assert (worst["from"], worst["to"]) in [(cost.from_task, cost.to_task) for cost in switches]
    assert worst["from_empty"]["from"] is None
    shown = weightpager("plan", assistant_bundle, "--worst").out
    assert f"{worst['from']} → {worst['to']}" in shown
    assert f"(nothing in memory) → {worst['from_empty']['to']}" in shown


def test_a_switch_that_does_not_fit_is_planned_in_the_two_phases_that_it_has(
    weightpager: Command, unaligned_bundle: wp.Bundle
) -> None:
    bundle = unaligned_bundle
    budget = json.loads(weightpager("inspect", bundle.path, "--json").out)["smallest_budget"]
    facts = json.loads(weightpager("inspect", bundle.path, "--budget", budget, "--json").out)
    assert facts["pairs_that_do_not_fit"]
    worst = json.loads(weightpager("plan", bundle.path, "--worst", "--budget", budget, "--json").out)
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for a, b in facts["pairs_that_do_not_fit"]:
            engine.deactivate()
            engine.evict()
            engine.activate(a)
            engine.activate(b)
            switch = engine.report().switches[-1]
            plan = json.loads(
                weightpager("plan", bundle.path, "--from", a, "--to", b, "--budget", budget, "--json").out
            )
            assert (switch.bytes, switch.reads, plan["both_fit"]) == (plan["bytes"], plan["reads"], False)
            assert plan["at_most_ms"] <= worst["at_most_ms"]


@pytest.mark.slow
def test_the_worst_switch_is_among_tasks_that_fit(weightpager: Command, tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, alignment=0.0)
    content["tasks"]["animal"]["sparsity"] = 0.2
    bundle = wp.compile(content, out=tmp_path / "a.bundle")
    pages = sorted(len(bundle.pages_of(name)) for name in bundle.tasks)
    assert pages[-1] > pages[-2]
    smallest = json.loads(weightpager("inspect", bundle.path, "--json").out)["smallest_budget"]
    budget = smallest - bundle.page_bytes
    worst = json.loads(weightpager("plan", bundle.path, "--worst", "--budget", budget, "--json").out)
    assert worst["tasks_that_do_not_fit"] == ["animal"]
    assert "animal" not in (worst["from"], worst["to"], worst["from_empty"]["to"])
    assert "note: animal does not fit" in weightpager("plan", bundle.path, "--worst", "--budget", budget).out
    refused = weightpager("plan", bundle.path, "--worst", "--budget", "1KiB")
    assert (refused.code, "smallest budget that would do is" in refused.err) == (1, True)


def test_run(weightpager: Command, assistant_bundle: Path) -> None:
    found = weightpager("run", assistant_bundle, "--task", "weather", "--budget", "1MiB", "red cat rain")
    assert found.code == 0
    assert found.out.split()[0] in {"sun", "rain", "snow"}
    assert "loaded" in found.err
    rows = json.loads(weightpager("run", assistant_bundle, "-t", "colour", "red cat", "--json").out)
    assert [word for word, _ in rows["predictions"][0]["tags"]] == ["red", "cat"]


def test_run_says_which_texts_it_cut(weightpager: Command, assistant_bundle: Path) -> None:
    texts = ["red cat", "red " * 30]
    assert "1 of 2 texts were cut: weather reads 16 tokens at most" in (
        weightpager("run", assistant_bundle, "-t", "weather", *texts).err
    )
    rows = json.loads(weightpager("run", assistant_bundle, "-t", "weather", *texts, "--json").out)["predictions"]
    assert [row["truncated"] for row in rows] == [False, True]
    assert "were cut" not in weightpager("run", assistant_bundle, "-t", "weather", texts[0]).err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_run_says_that_it_waits_for_texts_on_a_terminal(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal("red cat rain\n"))
    found = weightpager("run", assistant_bundle, "-t", "weather")
    assert (found.code, "Ctrl-D" in found.err) == (0, True)
    monkeypatch.setattr(sys, "stdin", io.StringIO("red cat rain\n"))
    assert "Ctrl-D" not in weightpager("run", assistant_bundle, "-t", "weather").err


def test_run_takes_a_dash_for_standard_input(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("red cat rain\nblue dog sun\n"))
    found = weightpager("run", assistant_bundle, "-t", "weather", "-", "--json")
    assert [row["text"] for row in json.loads(found.out)["predictions"]] == ["red cat rain", "blue dog sun"]


def test_a_byte_order_mark_is_no_part_of_a_text(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffred cat rain\n\nblue dog sun\n"))
    found = weightpager("run", assistant_bundle, "-t", "weather", "--json")
    assert [row["text"] for row in json.loads(found.out)["predictions"]] == ["red cat rain", "", "blue dog sun"]


def test_run_continues_a_text(weightpager: Command, writer_bundle: Path) -> None:
    found = weightpager("run", writer_bundle, "-t", "numbers", "one two", "--max-new-tokens", "4", "--json")
    assert isinstance(json.loads(found.out)["predictions"][0]["label"], str)


def test_eval_measures_what_the_compiler_measured(weightpager: Command, assistant_bundle: Path) -> None:
    report = json.loads((assistant_bundle / "report.json").read_bytes())
    found = weightpager("eval", assistant_bundle, "--json")
    assert found.code == 0
    for again, first in zip(json.loads(found.out)["tasks"], report["tasks"], strict=True):
        assert again == first
    one = weightpager("eval", assistant_bundle, "--task", "animal")
    assert "animal" in one.out
    assert "weather" not in one.out


def test_numbers_that_are_not_finite_are_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(name: str) -> None:
        raise ValueError(name)

    output.print_json({"loss": [math.nan, math.inf, 0.5]})
    assert json.loads(capsys.readouterr().out, parse_constant=refuse) == {"loss": [None, None, 0.5]}


@pytest.mark.slow
def test_eval_says_when_the_held_out_data_has_changed(weightpager: Command, tmp_path: Path) -> None:
    wp.compile(tiny.assistant(tmp_path), out=tmp_path / "a.bundle")
    held_out = tmp_path / "animal.eval.jsonl"
    held_out.write_text(held_out.read_text() * 2)
    found = weightpager("eval", tmp_path / "a.bundle", "--task", "animal")
    assert found.code == 0
    assert "no longer what the dense model was measured on" in found.out
    held_out.unlink()
    gone = weightpager("eval", tmp_path / "a.bundle", "--task", "animal")
    assert gone.code == 1
    assert "is not on this machine" in gone.err
    assert "--data animal=FILE" in gone.err
    later = weightpager("eval", tmp_path / "a.bundle", "--task", "weather", "--task", "animal")
    assert (later.code, "is not on this machine" in later.err) == (1, True)
    assert "measure weather" not in later.err
    held_out.write_text("{}\n")
    odd = weightpager("eval", tmp_path / "a.bundle", "--task", "weather", "--task", "animal")
    assert (odd.code, "measure weather" in odd.err) == (1, False)


@pytest.mark.slow
def test_eval_reads_held_out_data_where_it_is_said_to_be(weightpager: Command, tmp_path: Path) -> None:
    wp.compile(tiny.assistant(tmp_path), out=tmp_path / "a.bundle")
    before = json.loads(weightpager("eval", tmp_path / "a.bundle", "--json").out)
    moved = (tmp_path / "animal.eval.jsonl").rename(tmp_path / "elsewhere.jsonl")
    after = weightpager("eval", tmp_path / "a.bundle", "--data", f"animal={moved}", "--json")
    assert json.loads(after.out) == before
    refused = weightpager("eval", tmp_path / "a.bundle", "--data", str(moved))
    assert (refused.code, "expected '--data TASK=FILE'" in refused.err) == (2, True)
    unknown = weightpager("eval", tmp_path / "a.bundle", "--data", f"wether={moved}")
    assert (unknown.code, "unknown task 'wether'" in unknown.err) == (2, True)


def test_eval_refuses_a_task_that_is_not_there_before_it_measures_the_others(
    weightpager: Command, assistant_bundle: Path
) -> None:
    found = weightpager("eval", assistant_bundle, "--task", "animal", "--task", "wether")
    assert (found.code, "Did you mean 'weather'" in found.err) == (2, True)
    assert "measure animal" not in found.err
    assert "measure animal" in weightpager("eval", assistant_bundle, "--task", "animal").err


@pytest.mark.parametrize(("verb", "package"), [("compile", "pyarrow"), ("demo", "jinja2")])
def test_a_missing_extra_is_named(verb: str, package: str) -> None:
    arguments = ["x.yaml", "--out", "x.bundle"] if verb == "compile" else []
    code = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = {['weightpager', verb, *arguments]!r}\n"
        "from weightpager.cli import main; main()"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "weightpager[" in found.stderr


def test_verify(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    assert weightpager("verify", assistant_bundle).code == 0
    copy = Path(shutil.copytree(assistant_bundle, tmp_path / "copy.bundle"))
    with (copy / "pages-0000.safetensors").open("r+b") as file:
        file.seek(5000)
        file.write(b"\xff\x00\xff")
    found = weightpager("verify", copy)
    assert found.code == 1
    assert "page 0" in found.err
    assert json.loads(weightpager("verify", copy, "--json").out)["problems"]


def test_export(weightpager: Command, assistant_bundle: Path, tmp_path: Path) -> None:
    found = weightpager("export", assistant_bundle, "--task", "animal", "--out", tmp_path / "hf")
    assert found.code == 0
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(tmp_path / "hf"))
    again = weightpager("export", assistant_bundle, "--task", "animal", "--out", tmp_path / "hf")
    assert again.code == 2
    assert "exists; choose another name" in again.err
    assert os.listdir(tmp_path) == ["hf"]
    homeless = weightpager("export", assistant_bundle, "--task", "animal", "--out", tmp_path / "no" / "hf")
    assert (homeless.code, f"{tmp_path / 'no'} does not exist" in homeless.err) == (2, True)


def test_what_a_killed_export_left_is_removed_by_the_next(
    weightpager: Command, assistant_bundle: Path, tmp_path: Path
) -> None:
    dead, alive = tmp_path / ".hf.tmp-1234", tmp_path / ".hf.tmp-x7"
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    held = os.open(alive, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert weightpager("export", assistant_bundle, "--task", "animal", "--out", tmp_path / "hf").code == 0
    finally:
        os.close(held)
    assert sorted(os.listdir(tmp_path)) == [alive.name, "hf"]
    assert (tmp_path / "hf").stat().st_mode == alive.stat().st_mode


def test_an_export_that_the_storage_refuses_leaves_nothing(
    weightpager: Command, assistant_bundle: Path, tmp_path: Path
) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        found = weightpager("export", assistant_bundle, "--task", "animal", "--out", tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (found.code, f"out: cannot write {tmp_path / 'hf'}: " in found.err) == (2, True)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["run", "BUNDLE", "--task", "wether", "text"], 2, "Did you mean 'weather'"),
        (["run", "BUNDLE", "--task", "weather", "--budget", "1KiB", "text"], 1, "smallest budget that would do is"),
        (["eval", "BUNDLE", "--task", "weather", "--budget", "1KiB"], 1, "'weather' does not fit into"),
        (["run", "BUNDLE", "--task", "weather", "--budget", "lots", "text"], 2, "such as 512MiB"),
        (["run", "nowhere", "--task", "weather", "text"], 1, "weightpager compile"),
        (["inspect", "nowhere"], 1, "expected a bundle directory, found nothing there"),
        (["inspect", "/"], 1, "found a directory without manifest.json; 'weightpager ls FOLDER' lists bundles"),
        (["simulate", "BUNDLE", "--trace", "asistant"], 2, "or one of assistant, drive"),
        (["verify", "nowhere"], 1, "expected a bundle directory"),
        (["compile", "nowhere.yaml", "--out", "x.bundle"], 2, "nowhere.yaml"),
        (["plan", "BUNDLE", "--to", "weather", "--budget", "1KiB"], 1, "smallest budget that would do is"),
        (["plan", "BUNDLE", "--from", "animal", "--worst"], 2, "--worst alone"),
        (["run", "BUNDLE", "--task", "weather", "\udcff"], 2, "UTF-8"),
        (["run", "BUNDLE", "-t", "weather", "--max-new-tokens", "5", "text"], 2, "weather writes no text, found 5"),
        (["plan", "BUNDLE", "--to", "weather", "--storage", "300"], 2, "with a unit, such as 300MB/s, got '300'"),
        (
            ["plan", "BUNDLE", "--to", "weather", "--read-latency", "3"],
            2,
            "--read-latency: expected a time with a unit",
        ),
        (["demo", "--out", "no/such/folder.html"], 2, "does not exist"),
        (["bench", "BUNDLE", "--seed", "-1"], 2, "--seed"),
        (["plan", "BUNDLE", "--from", "x", "--to", "weather"], 2, "unknown task 'x'"),
    ],
)
def test_a_mistake_is_explained_in_a_line(
    weightpager: Command, assistant_bundle: Path, arguments: list[str], code: int, words: str
) -> None:
    found = weightpager(*(str(assistant_bundle) if word == "BUNDLE" else word for word in arguments))
    assert found.code == code
    assert words in found.err
    assert "Traceback" not in found.err


@pytest.mark.parametrize("verb", ["compile", "inspect", "plan", "run", "eval", "verify", "export", "doctor", "demo"])
def test_help_shows_an_example(weightpager: Command, verb: str) -> None:
    found = weightpager(verb, "--help")
    assert found.code == 0
    assert f"weightpager {verb}" in found.out
    assert "Example" in found.out
    assert "--json" in found.out


def test_the_environment_stands_in_for_flags(
    weightpager: Command, assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_RUN_TASK", "weather")
    monkeypatch.setenv("WEIGHTPAGER_RUN_BUDGET", "1KiB")
    assert "smallest budget" in weightpager("run", assistant_bundle, "text").err
    assert weightpager("run", assistant_bundle, "text", "--budget", "1MiB").code == 0


def test_version(weightpager: Command) -> None:
    assert weightpager("--version").out.strip() == wp.__version__
