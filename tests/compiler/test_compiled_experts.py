"""Mixtures of experts through the compiler: whole experts, blocks, growing, a budget, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
import weightpager as wp
from command import Command
from mixtures import TOKENS, model_of
from weightpager.blocks import BlockGrid
from weightpager.bundle import Bundle, WeightEntry
from weightpager.bundle.report.compile_report import read_report
from weightpager.errors import CompileError
from weightpager.nn.experts import mixtures

SMALL = {"calibration": {"items": 4, "max_length": 16, "batch": 4}, "compare": "none", "sparsity": 0.35}


def content(folder: Path, family: str = "Qwen2Moe", **changes: Any) -> dict[str, Any]:
    model_of(family).save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    return tiny.writer(folder, model=str(folder / "model"), **{**SMALL, **changes})


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Bundle]:
    folder = tmp_path_factory.mktemp("mixture")
    tasks = content(folder)
    return tasks, wp.compile(tasks, folder / "a.bundle", cache=False)


def grid_of(bundle: Bundle, entry: WeightEntry) -> BlockGrid:
    return BlockGrid(entry.out_features, entry.in_features, bundle.manifest.block_shape)


def left(bundle: Bundle, task: str) -> list[list[int]]:
    """Experts that a task's routers may choose, by layer."""
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task(task) as module:
        return [mixture.router.kept.nonzero()[:, 0].tolist() for mixture in mixtures(module)]


def test_tasks_keep_whole_experts(compiled: tuple[dict[str, Any], Bundle]) -> None:
    _, bundle = compiled
    for task in bundle.tasks:
        tables, kept = bundle.tables(task), left(bundle, task)
        assert [len(layer) for layer in kept] == [2, 2]
        for entry in bundle.manifest.weights:
            grid = grid_of(bundle, entry)
            part, number = entry.name.split("layers.")[1].split("."), entry.name.split(".experts.")[-1][:1]
            whole = "experts" not in part or int(number) in kept[int(part[0])]
            assert len(tables[entry.name].col_indices) == (grid.count if whole else 0)
    report = read_report(bundle)
    assert report.without_graph == {
        "language-modeling": "experts, which are chosen for each token while the module runs"
    }
    assert report.paged_share is not None
    assert report.paged_share > 0.9


def test_inspect_says_how_many_experts_tasks_keep(
    compiled: tuple[dict[str, Any], Bundle], weightpager: Command
) -> None:
    _, bundle = compiled
    assert "experts: animals 2, numbers 2, of 5 in each layer" in weightpager("inspect", bundle.path).out
    facts = json.loads(weightpager("inspect", bundle.path, "--json").out)
    assert facts["experts"] == {"all": [5, 5], "tasks": {"animals": [2, 2], "numbers": [2, 2]}}


@pytest.mark.slow
def test_a_task_that_is_added_keeps_whole_experts_and_leaves_the_others(
    compiled: tuple[dict[str, Any], Bundle], tmp_path: Path
) -> None:
    tasks, bundle = compiled
    added = {**tasks, "tasks": {"weather": tiny.text(tmp_path, "weather", tiny.WORDS[6:9])}}
    grown = wp.compile(added, tmp_path / "b.bundle", base=bundle.path, cache=False)
    assert [len(layer) for layer in left(grown, "weather")] == [2, 2]
    for task in bundle.tasks:
        assert left(grown, task) == left(bundle, task)
        with (
            wp.Engine.from_pretrained(bundle.path) as one,
            wp.Engine.from_pretrained(grown.path) as other,
            torch.inference_mode(),
            one.task(task) as before,
            other.task(task) as after,
        ):
            assert torch.equal(before(input_ids=TOKENS).logits, after(input_ids=TOKENS).logits)


@pytest.mark.slow
def test_a_budget_leaves_as_many_whole_experts_as_fit(compiled: tuple[dict[str, Any], Bundle], tmp_path: Path) -> None:
    tasks = {name: value for name, value in compiled[0].items() if name not in ("dtype", "sparsity")}
    with pytest.raises(CompileError, match=r"fit: expected at least .*, which \d\d% of the blocks in int4"):
        wp.compile({**tasks, "fit": "1KiB"}, tmp_path / "b.bundle", cache=False)
    bundle = wp.compile({**tasks, "fit": "54KiB"}, tmp_path / "a.bundle", cache=False)
    counts = {len(layer) for task in bundle.tasks for layer in left(bundle, task)}
    assert counts <= {2, 3, 4}
    assert len(counts) == 1


@pytest.mark.slow
def test_blocks_of_experts_are_trained(tmp_path: Path) -> None:
    recover = {"method": "finetune", "steps": 2, "private_blocks": 0.1, "private_steps": 1, "low_rank": 2}
    tasks = content(tmp_path, experts="blocks", recover=recover)
    bundle = wp.compile(tasks, tmp_path / "a.bundle", cache=False)
    assert all(len(layer) >= 2 for task in bundle.tasks for layer in left(bundle, task))
    kept = [len(table.col_indices) for table in bundle.tables("animals").values()]
    blocks = sum(grid_of(bundle, entry).count for entry in bundle.manifest.weights)
    np.testing.assert_allclose(sum(kept), 0.65 * blocks, rtol=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recover": "closed-form"}, "recover: expected none, or finetune that starts from dense, for the experts of"),
        (
            {"sparsity": 0.9},
            r"tasks.animals: a token goes to 2 of 5 experts, and the sparsity 0.9 leaves 0 of each layer",
        ),
    ],
)
def test_what_experts_cannot_have_is_refused_before_anything_is_trained(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    told: list[str] = []
    with pytest.raises(CompileError, match=message):
        wp.compile(
            content(tmp_path, **changes),
            tmp_path / "a.bundle",
            cache=False,
            progress=lambda stage, *_: told.append(stage),
        )
    assert not told
