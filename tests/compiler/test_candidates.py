"""What a compile makes of a budget, or of no size at all, where recovery trains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
import weightpager as wp
from weightpager.bundle.report.compile_report import Fit, read_report
from weightpager.compiler import candidates
from weightpager.compiler.candidates import held_out_of_training
from weightpager.compiler.prepare import prepare
from weightpager.compiler.selection.trial_plan import CHOICES, LARGER, candidate_names, tries_sparsities
from weightpager.compiler.task_file.file import TaskFile, from_dict
from weightpager.runtime.budget import smallest_budget

BUDGET = "110KiB"
RECOVER = {"method": "finetune", "steps": 8, "batch": 8, "private_steps": 2, "start": "dense"}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    """The assistant, of which nothing says how many blocks stay."""
    found = tiny.assistant(folder, recover=RECOVER) | changes
    for key in ("sparsity", "dtype", "alignment"):
        found.pop(key)
    return found


def task_file(folder: Path, **changes: Any) -> TaskFile:
    return from_dict(content(folder, fit=BUDGET) | changes)


def test_what_the_file_states_narrows_the_choice(tmp_path: Path) -> None:
    every = ["blocks", "private blocks", "low-rank parts", "one shared mask"]
    assert candidate_names(task_file(tmp_path)) == every
    assert candidate_names(task_file(tmp_path, alignment=0.5)) == every[:3]
    assert candidate_names(task_file(tmp_path, recover=RECOVER | {"private_blocks": 0.2})) == [every[0], every[3]]
    assert candidate_names(task_file(tmp_path, recover=RECOVER | {"low_rank": 0}, max_switch="4KiB")) == []
    assert candidate_names(task_file(tmp_path, effort="quick")) == []
    assert candidate_names(task_file(tmp_path, recover="closed-form")) == []
    assert candidate_names(from_dict(content(tmp_path))) == []


def test_only_a_file_without_a_size_and_with_validation_data_finds_its_sparsity(tmp_path: Path) -> None:
    stated = content(tmp_path)
    assert not tries_sparsities(from_dict(stated))
    validated(stated)
    assert tries_sparsities(from_dict(stated))
    for more in ({"sparsity": 0.5}, {"fit": BUDGET}, {"keep": 0.9}, {"effort": "quick"}, {"recover": "none"}):
        assert not tries_sparsities(from_dict(stated | more))


def validated(stated: dict[str, Any]) -> dict[str, Any]:
    """The same with validation data, copies of what is held out."""
    for task in stated["tasks"].values():
        copy = Path(task["eval"]).with_suffix(".validation.jsonl")
        copy.write_bytes(Path(task["eval"]).read_bytes())
        task["validation"] = str(copy)
    return stated


def test_a_task_without_validation_data_gives_some_of_its_rows(tmp_path: Path) -> None:
    data = prepare(task_file(tmp_path)).data
    divided = held_out_of_training(data)
    for task, of in data.items():
        train, held = divided[task].train, divided[task].validation
        assert held is not None
        assert len(held) == max(1, len(of.train) // 10) or held == of.train
        assert sorted(map(id, (*train, *held))) == sorted(map(id, of.train)) or held == of.train
        stated = replace(of, validation=of.eval)
        assert held_out_of_training({task: stated})[task] is stated


def found_fit(bundle: wp.Bundle) -> Fit:
    fit = read_report(bundle).fit
    assert fit is not None
    return fit


@pytest.mark.slow
def test_the_candidate_with_the_least_loss_is_kept_and_fits(tmp_path: Path) -> None:
    told: list[str] = []
    stated = content(tmp_path, fit=BUDGET)
    bundle = wp.compile(stated, out=tmp_path / "a.bundle", progress=lambda stage, *_: told.append(stage))
    fit = found_fit(bundle)
    assert smallest_budget(bundle) <= fit.budget
    assert [trial.name for trial in fit.trials] == ["blocks", "private blocks", "one shared mask", LARGER]
    assert all(math.isfinite(trial.short_loss) for trial in fit.trials)
    whole = {trial.name: trial for trial in fit.trials if trial.loss is not None}
    short = sorted(fit.trials[:-1], key=lambda trial: trial.short_loss)
    assert {*whole} == {trial.name for trial in short[:2]}
    kept = min(whole.values(), key=lambda trial: trial.loss or 0.0)
    assert fit.density == kept.density
    assert fit.trials[-1].budget > fit.budget
    assert fit.trials[-1].density > fit.trials[0].density
    assert {f"{name}: fine-tune" for name in (*CHOICES[:2], f"try {LARGER}")} <= {*told}
    with wp.Engine.from_pretrained(bundle.path, budget=BUDGET) as engine:
        for task in bundle.tasks:
            engine.activate(task)


@pytest.mark.slow
def test_where_all_blocks_fit_low_rank_parts_alone_are_tried_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "RANK", 1)  # eight take as much as a tiny model's weights
    fit = found_fit(wp.compile(content(tmp_path, fit="1MiB"), out=tmp_path / "a.bundle"))
    assert [trial.name for trial in fit.trials] == ["blocks", "low-rank parts"]
    assert [trial.density for trial in fit.trials] == [1.0, 1.0]
    assert all(trial.loss is not None for trial in fit.trials)


@pytest.mark.slow
def test_a_compile_that_was_interrupted_makes_the_same_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stated = content(tmp_path, fit=BUDGET)
    straight = wp.compile(stated, out=tmp_path / "straight.bundle")

    def interrupt(stage: str, done: int, _total: int) -> None:
        if stage == f"{CHOICES[1]}: fine-tune" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wp.compile(stated, out=tmp_path / "resumed.bundle", progress=interrupt)
    asked: list[str] = []
    measured: Callable[..., float] = candidates.validation_loss

    def counted(candidate: candidates.Candidate, *rest: Any) -> float:
        asked.append(candidate.name)
        return measured(candidate, *rest)

    monkeypatch.setattr(candidates, "validation_loss", counted)
    resumed = wp.compile(stated, out=tmp_path / "resumed.bundle")
    assert len(asked) == 1
    assert found_fit(resumed) == found_fit(straight)
    assert resumed.manifest.files.keys() == straight.manifest.files.keys()
    assert np.array_equal(resumed.pages.ids, straight.pages.ids)


@pytest.mark.slow
@pytest.mark.parametrize(("most", "density"), [(1.0, 0.25), (-1.0, 1.0)])
def test_without_a_size_as_few_blocks_stay_as_lose_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: float, density: float
) -> None:
    monkeypatch.setattr(candidates, "LOSS", most)
    bundle = wp.compile(validated(content(tmp_path)), out=tmp_path / "a.bundle")
    assert [task.density for task in read_report(bundle).tasks] == pytest.approx([density] * 4, abs=0.02)
