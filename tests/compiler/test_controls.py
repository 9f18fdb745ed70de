"""Controls get the training that the bundle gets, or none is compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tiny
import weightpager as wp
from command import Command
from weightpager.answers.score import Score
from weightpager.bundle.report.advice import advise
from weightpager.bundle.report.compile_report import ControlScore, read_report
from weightpager.compiler import controls
from weightpager.compiler.controls import INT8, control_names, control_work, measure_controls, measuring, trained_on
from weightpager.compiler.data import TaskData, collate_texts
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.journal import CompileRun, Journal
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training.evaluate import evaluate
from weightpager.errors import ConfigError
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.progress import StepProgress, silent
from weightpager.task_data.texts import Example

RECOVER = {"method": "finetune", "steps": 6, "batch": 8, "learning_rate": 3e-3}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    return tiny.assistant(folder, recover=RECOVER, compare="dense") | changes


def prepared_of(folder: Path, **changes: Any) -> Prepared:
    return prepare(from_dict(content(folder, **changes)))


def round_tables(model: nn.Module) -> None:
    """Who quantises a model has its embedding tables in int8."""
    for part in model.modules():
        if isinstance(part, nn.Embedding):
            part.weight.copy_(INT8.apply(part.weight))


@pytest.mark.slow
def test_the_dense_model_is_trained_as_long_before_it_is_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "gain", lambda _now, _before: 0.0)
    prepared, told = prepared_of(tmp_path), []
    before = {name: tensor.clone() for name, tensor in prepared.source.parameters("animal").items()}
    found = {
        control.name: control for control in measure_controls(prepared, CompileRun(lambda *step: told.append(step)))
    }
    assert list(found) == ["dense", "int8", "int4", "int3", "int2"]
    assert [done for stage, done, _ in told if stage == "control dense: train on"] == list(range(1, 7))
    assert all(torch.equal(tensor, before[name]) for name, tensor in prepared.source.parameters("animal").items())
    longer = trained_on(prepared.source, prepared.data, Journal.none(), silent)
    for task, data in prepared.data.items():
        batches = data.batches(data.eval, 32)
        assert found["dense"].scores[task] == evaluate(longer.models[task], batches, data.kind)
        with torch.no_grad():
            for info in longer.paged:
                linear = longer.linear(task, info.name)
                linear.weight.copy_(INT8.apply(linear.weight).bfloat16())
            round_tables(longer.models[task])
        assert found["int8"].scores[task] == evaluate(longer.models[task], batches, data.kind)
        break  # the tasks share their weights, which are quantised now


@pytest.mark.slow
def test_a_dense_model_that_training_harms_is_compared_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepared_of(tmp_path)
    monkeypatch.setattr(controls, "gain", lambda _now, _before: -0.001)
    dense, int8, *_ = measure_controls(prepared, CompileRun())
    assert dense.scores == prepared.dense
    task, data = next(iter(prepared.data.items()))
    with torch.no_grad():
        for info in prepared.source.paged:
            weight = prepared.source.linear(task, info.name).weight
            weight.copy_(INT8.apply(weight).bfloat16())
        round_tables(prepared.source.models[task])
    batches = data.batches(data.eval, 32)
    assert int8.scores[task] == evaluate(prepared.source.models[task], batches, data.kind)


@pytest.mark.slow
@pytest.mark.parametrize("validated", [True, False])
def test_validation_data_choose_the_dense_model_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, validated: bool
) -> None:
    """Training gains on validation data here, and loses on held-out data."""
    prepared = prepared_of(tmp_path)
    if validated:
        data = {task: replace(of_task, validation=of_task.train) for task, of_task in prepared.data.items()}
        prepared = replace(prepared, data=data)

    def score(source: DenseModel, task: str, data: TaskData, _progress: StepProgress) -> Score:
        right = source.models[task] is not prepared.source.models[task]
        if data.eval == prepared.data[task].eval:
            return Score("accuracy", 0.0 if right else 1.0, 30)
        return Score("accuracy", 1.0 if right else 0.0, 30)

    monkeypatch.setattr(controls, "score_alone", score)
    dense = measure_controls(prepared, CompileRun())[0]
    assert (dense.scores == prepared.dense) is not validated


def test_a_gain_is_a_higher_share_or_a_lower_perplexity() -> None:
    def share(value: float) -> Score:
        return Score("accuracy", value, 10)

    def perplexity(value: float) -> Score:
        return Score("perplexity", value, 10)

    assert controls.gain(share(0.9), share(0.8)) == pytest.approx(0.1)
    assert controls.gain(perplexity(20.0), perplexity(10.0)) < 0 < controls.gain(perplexity(5.0), perplexity(10.0))
    assert controls.gain(perplexity(math.inf), perplexity(10.0)) == -math.inf
    assert controls.gain(perplexity(math.nan), perplexity(10.0)) == -math.inf


def test_steps_of_private_blocks_are_the_dense_models_too(tmp_path: Path) -> None:
    task_file = from_dict(content(tmp_path, recover={**RECOVER, "private_blocks": 0.2, "private_steps": 3}))
    assert "18 steps" in str(control_work(task_file))


@pytest.mark.slow
@pytest.mark.parametrize("compare", ["none", False])
def test_controls_that_are_skipped_cost_nothing_and_no_verdict_is_given(
    tmp_path: Path, weightpager: Command, compare: object
) -> None:
    task_file = content(tmp_path, compare=compare)
    told: list[str] = []
    bundle = wp.compile(task_file, out=tmp_path / "a.bundle", progress=lambda stage, *_: told.append(stage))
    report = read_report(bundle)
    assert report.controls == []
    assert not any("control" in stage for stage in told)
    assert advise(bundle, report) is None
    assert "not compared with anything simpler: controls skipped" in weightpager("inspect", bundle.path).out
    assert control_work(from_dict(task_file)) is None


@pytest.mark.slow
def test_what_too_few_items_could_tell_nothing_of_is_not_trained_unless_asked_for(tmp_path: Path) -> None:
    asked = content(tmp_path)
    unsaid = {key: value for key, value in asked.items() if key != "compare"}  # 40 held-out items a task
    assert [len(measure_controls(prepare(from_dict(of)), CompileRun())) for of in (asked, unsaid)] == [5, 0]
    untrained = prepare(from_dict(unsaid)).changed(recover=from_dict({**unsaid, "recover": "none"}).recover)
    assert len(measure_controls(untrained, CompileRun())) == 5


def test_what_too_few_items_could_tell_nothing_of_is_not_written_unless_asked_for(tmp_path: Path) -> None:
    asked = tiny.clerk(tmp_path, recover="none", compare="dense")
    unsaid = {key: value for key, value in asked.items() if key != "compare"}

    def names(content: dict[str, Any], items: int) -> list[str]:
        item = Example((1, 2), 0)
        data = TaskData("text-generation", (), (item,), (item,) * items, None, partial(collate_texts, pad=0))
        return control_names(from_dict(content), dict.fromkeys(content["tasks"], data))

    every = ["int8", "int4", "int3", "int2", "shared mask"]
    assert [names(asked, 20), names(unsaid, 20), names(unsaid, 50)] == [every, [], every]
    assert measuring("int4", "twice", every) == "control int4 (2 of 5): twice"


@pytest.mark.slow
def test_one_shared_mask_is_trained_by_the_same_spec(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    prepared = prepared_of(tmp_path, compare=True, alignment=0.5)
    found = measure_controls(prepared, CompileRun(lambda stage, done, _total: told.append((stage, done))))
    assert [control.name for control in found] == ["dense", "int8", "int4", "int3", "int2", "shared mask"]
    assert [done for stage, done in told if stage == "shared mask: fine-tune"] == list(range(1, 7))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "int4"])
def test_one_shared_mask_is_measured_in_the_dtype_of_the_bundle(dtype: PageDtype, tmp_path: Path) -> None:
    """It is what `alignment: inf` compiles: of the same bytes, and of the same score."""
    task_file = content(tmp_path, compare=True, dtype=dtype)
    control = read_report(wp.compile(task_file, out=tmp_path / "a.bundle")).controls[-1]
    same = wp.compile(task_file | {"alignment": "inf", "compare": "none"}, out=tmp_path / "b.bundle")
    found = {task.name: task.sparse for task in read_report(same).tasks}
    assert control.name == "shared mask"
    assert control.scores == pytest.approx(found, abs=2 / 40)  # other kernels, another precision
    kept = len(same.kept_locations("animal"))
    assert control.resident_bytes == kept * block_bytes(same.manifest.block_shape, dtype)


@pytest.mark.slow
def test_a_compile_killed_while_controls_train_goes_on_there_even_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.resume.journal.SECONDS", 0.0)
    monkeypatch.setattr("weightpager.compiler.resume.journal.SHARE", float("inf"))
    task_file, out = content(tmp_path), tmp_path / "a.bundle"

    def stages_of(compare: str, at: int | None = None) -> dict[str, list[int]]:
        stages: dict[str, list[int]] = {}

        def progress(stage: str, done: int, _total: int) -> None:
            stages.setdefault(stage, []).append(done)
            if stage == "control dense: train on" and done == at:
                raise KeyboardInterrupt

        wp.compile(task_file | {"compare": compare}, out=out, force=True, progress=progress)
        return stages

    with pytest.raises(KeyboardInterrupt):
        stages_of("dense", at=4)
    again = stages_of("dense")
    assert again["control dense: train on"] == [5, 6]
    assert "train the dense model" not in again
    with pytest.raises(KeyboardInterrupt):
        stages_of("dense", at=4)
    without = stages_of("none")
    assert "control dense: train on" not in without
    assert "fine-tune" not in without


@pytest.mark.slow
def test_intervals_and_what_lies_between_come_with_the_report(tmp_path: Path) -> None:
    bundle = wp.compile(content(tmp_path), out=tmp_path / "a.bundle")
    report = read_report(bundle)
    assert (report.compare, report.recover) == ("dense", "finetune")
    for task in report.tasks:
        assert task.texts == 40
        for value, interval in ((task.dense, task.dense_interval), (task.sparse, task.sparse_interval)):
            assert value is not None
            assert interval is not None
            assert interval[0] <= value <= interval[1]
        assert task.loss_interval is not None
    for control in report.controls:
        for part in (control.intervals, control.loss_intervals, control.gap_intervals):
            assert part.keys() == control.scores.keys()
    found = advise(bundle, report)
    assert found is not None
    assert all(choice.interval is not None for choice in found.choices)
    one = report.controls[0].only(["animal"])
    assert [part.keys() for part in (one.scores, one.gap_intervals)] == [{"animal"}] * 2
    old = ControlScore.model_validate_json('{"name": "int8", "resident_bytes": 1, "scores": {"animal": 0.5}}')
    assert old.gap_intervals == {}


@pytest.mark.slow
def test_the_command_says_what_controls_cost_and_leaves_them_out(tmp_path: Path, weightpager: Command) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(json.dumps(content(tmp_path)), encoding="utf-8")
    found = weightpager("compile", path, "--out", tmp_path / "a.bundle")
    assert found.code == 0
    assert "6 steps of recovery, and as many for the dense model to compare it with" in " ".join(found.err.split())
    assert "dense, trained longer (chosen on validation data)" in found.out
    assert "controls" in found.out
    without = weightpager("compile", path, "--out", tmp_path / "b.bundle", "--compare", "none")
    assert "to compare it with" not in without.err
    assert "controls skipped" in without.out
    assert "Few held-out texts or images" in without.out
    refused = weightpager("compile", path, "--out", tmp_path / "c.bundle", "--compare", "everything")
    assert refused.code == 2
    assert "compare" in refused.err


def test_a_comparison_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compare: expected"):
        from_dict(content(tmp_path, compare="everything"))
