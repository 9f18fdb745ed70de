"""Which whole experts tasks keep, by what they add to the tasks' tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixtures import TOKENS, masks_of, model_of, source_of
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.selection.block_choice import choose_blocks, parts
from weightpager.compiler.selection.experts import (
    check_experts,
    check_left,
    expert_layers,
    expert_saliency,
    experts_kept,
    keeps_whole_experts,
    least_density,
)
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.errors import CompileError
from weightpager.nn.experts import mixtures


def source(folder: Path, family: str = "Qwen2Moe", tasks: int = 2, **settings: object) -> DenseModel:
    return source_of(model_of(family), folder, tasks, **{"alignment": 0.0, "sparsity": 0.3, **settings})


def of_experts(of: DenseModel, values: FloatArray) -> dict[str, FloatArray]:
    """Saliency by block from that of experts, [layers, experts]."""
    found = {info.name: np.ones(info.grid.count) for info in of.paged}
    for layer, row in zip(expert_layers(of), values, strict=True):
        for names, value in zip(layer.experts, row, strict=True):
            for name in names:
                found[name][:] = value
    return found


def test_saliency_is_what_experts_add_to_tokens_that_are_no_padding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.training.device._bfloat16_pays", lambda: False)  # rounds small sums
    of = source(tmp_path)
    mask = torch.ones_like(TOKENS)
    mask[1, 2:] = 0
    batch = Batch({"input_ids": TOKENS, "attention_mask": mask}, TOKENS)
    found = expert_saliency(of, "task-0", [batch, batch])
    model = of.models["task-0"]
    first = mixtures(model)[0]
    seen: list[torch.Tensor] = []
    handle = first.experts.register_forward_pre_hook(lambda _, given: seen.extend(given))
    with torch.inference_mode():
        model(**batch.inputs)
        handle.remove()
        hidden, chosen, weights = seen
        wanted = [0.0] * len(first.experts)
        for token in mask.flatten().nonzero()[:, 0].tolist():
            for number, weight in zip(chosen[token].tolist(), weights[token].tolist(), strict=True):
                wanted[number] += 2 * float((first.experts[number](hidden[token]) * weight).float().norm())
    layer = expert_layers(of)[0]
    sums = [sum(float(found[name].sum()) for name in names) for names in layer.experts]
    np.testing.assert_allclose(sums, wanted, rtol=1e-4)
    assert all(len(set(found[name])) == 1 for names in layer.experts for name in names)
    assert not any(experts._forward_pre_hooks for experts in (mixture.experts for mixture in mixtures(model)))


def test_an_expert_that_no_token_reaches_scores_nothing(tmp_path: Path) -> None:
    of = source(tmp_path, "Mixtral")
    one = Batch({"input_ids": TOKENS[:1, :1], "attention_mask": torch.ones(1, 1, dtype=torch.long)}, TOKENS[:1, :1])
    found = expert_saliency(of, "task-0", [one])
    for layer in expert_layers(of):
        reached = [float(found[names[0]].sum()) > 0 for names in layer.experts]
        assert sum(reached) == layer.top_k == 2


def test_refuses_saliency_that_is_not_finite(tmp_path: Path) -> None:
    of = source(tmp_path)
    for expert in mixtures(of.models["task-0"])[1].experts:
        expert.down_proj.weight.fill_(float("nan"))
    batch = Batch({"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS)}, TOKENS)
    with pytest.raises(CompileError, match=r"tasks.task-1: calibration of 'model.layers.1.mlp' gave NaN"):
        expert_saliency(of, "task-1", [batch])


def test_each_task_keeps_its_best_experts_and_all_of_the_rest(tmp_path: Path) -> None:
    of = source(tmp_path)
    values = np.arange(10, dtype=float).reshape(2, 5)
    saliency = {"task-0": of_experts(of, values), "task-1": of_experts(of, values[:, ::-1])}
    found = choose_blocks(Prepared(of, {}, {}, saliency))
    kept = experts_kept(of, "task-0")
    assert 2 <= kept < 5
    masks = found.masks
    for layer in expert_layers(of):
        for number, names in enumerate(layer.experts):
            for name in names:
                assert masks.keep[name].all(0).tolist() == masks.keep[name].any(0).tolist()
                assert masks.keep[name][0].tolist() == [number >= 5 - kept, number < kept]
    inside = {name for layer in expert_layers(of) for names in layer.experts for name in names}
    assert all(mask.all() for name, mask in masks.keep.items() if name not in inside)
    share = sum(mask.sum() for mask in masks.keep.values()) / sum(mask.size for mask in masks.keep.values())
    assert 0.7 - 0.2 < share <= 0.7
    assert found.gap == pytest.approx(0, abs=1e-6)


def test_strong_alignment_shares_experts(tmp_path: Path) -> None:
    of = source(tmp_path, alignment=float("inf"))
    values = np.arange(10, dtype=float).reshape(2, 5)
    saliency = {"task-0": of_experts(of, values), "task-1": of_experts(of, values[:, ::-1])}
    masks = choose_blocks(Prepared(of, {}, {}, saliency)).masks
    assert all((mask[:, 0] == mask[:, 1]).all() for mask in masks.keep.values())


def test_a_task_that_could_not_keep_a_tokens_experts_is_refused_with_what_would_do(tmp_path: Path) -> None:
    of = source(tmp_path, sparsity=0.9)
    with pytest.raises(
        CompileError, match=r"tasks.task-0: a token goes to 2 of 5 experts, and the sparsity 0.9 leaves"
    ):
        check_experts(of)
    most = np.floor(100 * (1 - least_density(of))) / 100
    check_experts(source(tmp_path, sparsity=float(most)))
    assert experts_kept(source(tmp_path, sparsity=float(most)), "task-0") == 2
    assert experts_kept(source(tmp_path, sparsity=0.0), "task-0") == 5


def test_blocks_of_experts_share_one_floor_and_one_problem(tmp_path: Path) -> None:
    of = source(tmp_path, experts="blocks")
    assert not keeps_whole_experts(of)
    assert least_density(of) == 0
    saliency = {task: of_experts(of, np.ones((2, 5))) for task in of.models}
    (part,) = parts(Prepared(of, {}, {}, saliency), np.full((2, 2), 0.5))
    grids = {info.name: info.grid.count for info in of.paged}
    sizes = [sum(grids[name] for names in layer.experts for name in names) for layer in expert_layers(of)]
    assert [size for size in part.problem.sizes if size in sizes] == sizes
    assert sum(part.problem.sizes) == len(part.problem.saliency) == sum(grids.values())
    whole = parts(Prepared(source(tmp_path), {}, {}, saliency), np.full((2, 2), 0.5))
    assert [len(each.problem.saliency) for each in whole] == [5, 5]


def test_a_units_mask_is_gathered_from_all_of_its_blocks(tmp_path: Path) -> None:
    of = source(tmp_path, tasks=1)
    first, second = expert_layers(of)
    masks = dict(masks_of(of, {}).keep)
    masks[first.experts[1][2]] = masks[first.experts[1][2]].copy()
    masks[first.experts[1][2]][3] = False
    found = parts(Prepared(of, {}, {}, {"task-0": of_experts(of, np.ones((2, 5)))}), np.zeros((1, 1)))
    assert [part.gathered(masks)[:, 0].tolist() for part in found] == [[True, False, True, True, True], [True] * 5]
    assert second.top_k == 2


def test_too_few_experts_that_are_left_are_refused(tmp_path: Path) -> None:
    of = source(tmp_path, experts="blocks")
    layer = expert_layers(of)[1]
    grids = {info.name: info.grid.count for info in of.paged}
    lost = {
        names[number % 3]: np.zeros((grids[names[number % 3]], 2), bool)
        for number, names in enumerate(layer.experts[1:])
    }
    check_left(of, masks_of(of, {}))
    with pytest.raises(
        CompileError, match=r"tasks.task-0: model.layers.1.mlp keeps blocks of 1 of 5 experts, and a token"
    ):
        check_left(of, masks_of(of, lost))
