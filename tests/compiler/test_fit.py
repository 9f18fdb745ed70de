"""A budget in place of sparsity and dtype: what a compile makes of it opens under it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tiny
import weightpager as wp
from command import Command
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.compile_report import read_report
from weightpager.compiler import fit
from weightpager.compiler.fit import LEAST, _budget_of_trial, choose_density_and_alignment, density_of, largest
from weightpager.compiler.prepare import prepare
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.alignment_target import _switch_bytes
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.task_file.file import from_dict, restated
from weightpager.errors import CompileError, ConfigError
from weightpager.runtime.budget import smallest_budget

TRAINED = {"method": "finetune", "steps": 4, "batch": 8, "private_blocks": 0.3, "private_steps": 2, "low_rank": 2}


def content(folder: Path, **changes: Any) -> dict[str, Any]:
    found = tiny.assistant(folder, compare="none") | changes
    found.pop("sparsity")
    found.pop("dtype", None)
    return found


@given(
    st.integers(0, 10**6),
    st.integers(1, 10**7),
    st.integers(1, 2 * 10**7),
    st.floats(0.5, 1.2),
    st.integers(0, 8),
    st.integers(0, 1000),
)
def test_a_density_that_is_found_fits(
    always: int, blocks: int, budget: int, known: float, trials: int, noise: int
) -> None:
    asked: dict[float, int] = {}

    def size(density: float) -> int:
        asked[density] = always + round(blocks * density) + (hash(density) % (noise + 1))
        return asked[density]

    found = largest(size, budget, known * blocks, trials, LEAST)
    assert len(asked) <= trials + 1
    if found is None:
        assert asked[LEAST] > budget
        return
    assert asked[found] <= budget
    if noise == 0 and trials >= 4 and found < 1:
        assert budget - asked[found] <= 0.01 * budget + 1


@pytest.mark.slow
@pytest.mark.parametrize("recover", ["none", TRAINED])
def test_the_bundle_opens_under_the_budget_and_all_tasks_run(tmp_path: Path, recover: Any) -> None:
    stated = content(tmp_path, recover=recover) | {"sparsity": 0.5, "dtype": "int4"}
    budget = smallest_budget(wp.compile(stated, out=tmp_path / "stated.bundle"))
    told: list[str] = []
    fit = content(tmp_path, recover=recover, fit=budget)
    bundle = wp.compile(fit, out=tmp_path / "fit.bundle", progress=lambda stage, *_: told.append(stage))
    assert bundle.manifest.dtype == "int4"
    found = read_report(bundle).fit
    assert found is not None
    assert (found.budget, found.bytes, found.dtype) == (budget, smallest_budget(bundle), "int4")
    assert 0.25 < found.density < 0.6  # of so few pages one a layer is left free for private blocks
    assert all(task.density == pytest.approx(found.density, abs=0.02) for task in read_report(bundle).tasks)
    assert "more blocks are worth more than finer numbers" in found.why
    assert found.bytes <= budget
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for task in bundle.tasks:
            engine.activate(task)
    assert "find what fits" in told
    assert not list(tmp_path.glob("*fit-*"))


@pytest.mark.slow
def test_blocks_come_before_rows_and_the_budget_that_drops_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the least rows take room from blocks; whoever states what is named keeps every block."""
    monkeypatch.setattr("weightpager.compiler.packing.rows.LEAST_BYTES", 4096)
    words = {"model": str(tiny.bert(tmp_path / "wordy", words=4000)), "rows": "on-demand"}
    stated = tiny.assistant(tmp_path, sparsity=0.5, dtype="int4", **words)
    budget = smallest_budget(wp.compile(stated, out=tmp_path / "stated.bundle"))
    without = content(tmp_path, **words)
    bundle = wp.compile(without | {"fit": budget}, out=tmp_path / "fit.bundle")
    found = read_report(bundle).fit
    assert found is not None
    assert bundle.manifest.row_tables
    assert 0.45 < found.density < 0.65
    with wp.Engine.from_pretrained(bundle.path, budget=budget) as engine:
        for task in bundle.tasks:
            engine.activate(task)
    assert found.whole is not None
    whole = read_report(wp.compile(without | {"fit": found.whole}, out=tmp_path / "whole.bundle")).fit
    assert whole is not None
    assert (whole.density, whole.dtype, whole.whole) == (1.0, "int4", None)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "other"), [("int8", "int4"), ("bfloat16", "int8")])
def test_where_all_blocks_fit_none_is_dropped_and_numbers_are_finer(tmp_path: Path, dtype: str, other: str) -> None:
    whole = content(tmp_path) | {"sparsity": 0.0, "dtype": dtype}
    budget = smallest_budget(wp.compile(whole, out=tmp_path / "whole.bundle"))
    bundle = wp.compile(content(tmp_path, fit=budget), out=tmp_path / "fit.bundle")
    found = read_report(bundle).fit
    assert found is not None
    assert (found.density, found.dtype) == (1.0, dtype)
    assert f"hold all blocks in {dtype}, so none is dropped" in found.why
    less = read_report(wp.compile(content(tmp_path, fit=budget - 1), out=tmp_path / "less.bundle")).fit
    assert less is not None
    assert less.dtype in (other, "int4")


@pytest.mark.slow
def test_a_budget_that_is_too_small_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(CompileError, match=r"fit: expected at least (.*), which 5% of the blocks in int4") as refused:
        wp.compile(
            content(tmp_path, fit=1000), out=tmp_path / "a.bundle", progress=lambda stage, *_: told.append(stage)
        )
    assert not any("train" in stage for stage in told)
    enough = str(refused.value).split("at least ")[1].split(",")[0]
    bundle = wp.compile(content(tmp_path, fit=enough), out=tmp_path / "a.bundle")
    fit = read_report(bundle).fit
    assert fit is not None
    assert fit.density == pytest.approx(LEAST, abs=0.1)
    assert footprint(bundle).total < fit.bytes <= fit.budget


def test_what_is_stated_beside_a_budget_is_refused(tmp_path: Path, assistant_bundle: Path) -> None:
    for key, value in (("sparsity", 0.5), ("dtype", "int8")):
        with pytest.raises(ConfigError, match=f"fit: expected no {key} beside it"):
            from_dict(content(tmp_path, fit="8MiB") | {key: value})
    own = content(tmp_path, fit="8MiB")
    own["tasks"]["animal"]["sparsity"] = 0.2
    with pytest.raises(ConfigError, match=r"expected no tasks.animal.sparsity beside it"):
        from_dict(own)
    with pytest.raises(ConfigError, match="fit: expected a size"):
        restated(from_dict(content(tmp_path)), fit="much")
    with pytest.raises(ConfigError, match="fit: expected none with a base"):
        wp.compile(content(tmp_path, fit="8MiB"), out=tmp_path / "a.bundle", base=assistant_bundle)


@pytest.mark.slow
def test_the_command_says_what_was_chosen_and_why(tmp_path: Path, weightpager: Command) -> None:
    path = tmp_path / "tasks.yaml"
    path.write_text(json.dumps(content(tmp_path)), encoding="utf-8")
    found = weightpager("compile", path, "--out", tmp_path / "a.bundle", "--fit", "120KiB")
    assert found.code == 0, found.err
    words = " ".join(found.out.split())
    assert "fit: 120.0 KiB hold" in words
    assert "With its largest task it takes" in words
    stated = tmp_path / "stated.yaml"
    stated.write_text(json.dumps(content(tmp_path) | {"dtype": "int8"}), encoding="utf-8")
    refused = weightpager("compile", stated, "--out", tmp_path / "b.bundle", "--fit", "120KiB")
    assert refused.code == 2
    assert "fit: expected no dtype beside it" in " ".join(refused.err.split())


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"max_switch": "2KiB"}, {"accuracy_loss": 1.0}])
def test_limits_of_alignment_hold_at_the_density_that_fits(tmp_path: Path, limit: dict[str, Any]) -> None:
    aligned = content(tmp_path, fit="120KiB") | limit
    del aligned["alignment"]
    rough, run = prepare(from_dict(aligned)).changed(sparsity=0.9), CompileRun()
    found, frontier = choose_density_and_alignment(rough, run)
    task_file = found.source.task_file
    assert density_of(found) > 0.2
    assert _budget_of_trial(found, run) <= 120 * 1024
    strength = task_file.alignment if math.isfinite(task_file.alignment) else None
    (chosen,) = (point for point in frontier if point.alignment == strength)
    rate = found.source.transitions.switch_rate() * (1 - np.eye(len(task_file.tasks)))
    assert chosen.switch_bytes == pytest.approx(_switch_bytes(found.source, choose_blocks(found).masks, rate))
    assert chosen.switch_bytes <= 2048 if "max_switch" in limit else chosen.loss <= 1


@pytest.mark.parametrize("most", [0.5, 0.8])
def test_a_density_that_no_longer_fits_falls_until_it_does(monkeypatch: pytest.MonkeyPatch, most: float) -> None:
    told = 0

    class Tasks:
        """As much of prepared tasks as is looked at; stronger alignment leaves less room."""

        def __init__(self, density: float, strength: int = 0) -> None:
            self.density, self.strength = density, strength
            self.task_file = SimpleNamespace(fit=1, dtype="int4")

        def changed(self, sparsity: float) -> Tasks:
            return Tasks(1 - sparsity, self.strength)

    def choose(tasks: Tasks, _progress: object) -> tuple[Tasks, list[str]]:
        nonlocal told
        told += 1
        return Tasks(tasks.density, told), ["tried"]

    def fits(tasks: Tasks) -> float:
        return most / min(tasks.strength, 4) ** 0.1

    names = {"choose_alignment": choose, "density_of": lambda tasks: tasks.density}
    names |= {"fit_to_budget": lambda tasks, _: Tasks(fits(tasks), tasks.strength)}
    names |= {"_budget_of_trial": lambda tasks, _: 1 if tasks.density <= fits(tasks) else 2}
    for name, value in names.items():
        monkeypatch.setattr(fit, name, value)
    found, _ = choose_density_and_alignment(Tasks(0.1), CompileRun())  # type: ignore[arg-type]
    assert 0.98 * most / 4**0.1 <= found.density <= fits(found)  # type: ignore[attr-defined, arg-type]
    assert found.strength == told > 3  # type: ignore[attr-defined]
