"""A task's own parts learn what they would by whole weights, whichever products are made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from sparse import masks_of
from weightpager.compiler import data as task_data
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.paged_weights import requiring_gradients
from weightpager.compiler.recovery.own_parameters import LowRankParameters
from weightpager.compiler.recovery.private_blocks import OwnProducts
from weightpager.compiler.recovery.rounding import Rounding, stored_if_coarse
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training import device
from weightpager.compiler.training.loss import logits_with, loss
from weightpager.compiler.training.masks import drop, module_name
from weightpager.kernels.torch.kept_blocks import products

TASK = "animal"


@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("narrow", [True, False], ids=["bfloat16-products", "float32-products"])
@pytest.mark.parametrize("skips", [True, False], ids=["kept-blocks", "whole-weights"])
def test_losses_and_gradients_are_those_of_whole_weights(
    skips: bool, narrow: bool, rank: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if skips and not products():
        pytest.skip("no native module")
    monkeypatch.setattr(device, "_bfloat16_pays", lambda: narrow)
    torch.manual_seed(0)
    source = sources.load(from_dict(tiny.assistant(tmp_path, dtype=dtype)))
    spec = source.task_file.tasks[TASK]
    data = task_data.load(TASK, spec, source.reads, source.classes(TASK), source.task_file.max_length_of(TASK))
    batch, model, masks = next(data.shuffled(8, 0)), source.models[TASK], masks_of(source, 0.5)
    random, free, own = np.random.default_rng(1), {}, {}
    for number, info in enumerate(source.paged):
        kept = masks.blocks(TASK, info)
        free[info.name] = torch.from_numpy(kept & (random.random(kept.shape) < 0.4) & (number != 1))
        if free[info.name].any():
            values = source.linear(TASK, info.name).weight.detach()
            own[info.name] = nn.Parameter(values + 0.01 * torch.randn_like(values))
    added = LowRankParameters(source, TASK, rank, 0)
    with torch.no_grad():
        for parameter in added.parameters().values():
            parameter.normal_(0, 0.05)
    rounding = Rounding.of(source, own, 1)
    if rounding is not None:
        rounding.update(0)
    learnt = {**own, **added.parameters()}

    def whole(name: str) -> Tensor:
        info = next(info for info in source.paged if info.name == name)
        values = stored_if_coarse(source.linear(TASK, name).weight.detach(), info.grid, source.task_file.dtype)
        weight = drop(masks.masked(TASK, info, values), ~free[name], info.grid)
        if name in own:
            moving = own[name] if rounding is None else rounding(name, own[name])
            weight = weight + drop(moving, free[name], info.grid)
        return added.added(name, weight)

    def gradients(logits: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        error = loss(logits, batch.labels, spec.kind)
        return error.detach(), dict(zip(learnt, torch.autograd.grad(error, list(learnt.values())), strict=True))

    with requiring_gradients(model, []):
        weights = {module_name(info.name, model.base_model_prefix): whole(info.name) for info in source.paged}
        wanted, theirs = gradients(logits_with(model, weights, batch, spec.kind))
        found, ours = gradients(OwnProducts(source, masks, TASK, free, own, added, rounding, skips=skips).logits(batch))
    rounds = skips or narrow
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 if rounds else 1e-5)
    for name, gradient in ours.items():
        scale = float(theirs[name].abs().max())
        torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=(0.1 if rounds else 1e-4) * scale + 1e-6)
