"""Training by kept blocks alone learns what training by whole weights under masks learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

import tiny
from weightpager.compiler import data as task_data
from weightpager.compiler.data import Batch
from weightpager.compiler.model import dense_model as sources
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training import device, sparse_products
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.compiler.training.masks import Masks
from weightpager.compiler.training.sparse_products import MOST_KEPT, SparseProducts
from weightpager.kernels.torch.kept_blocks import products

pytestmark = pytest.mark.skipif(not products(), reason="no native module")


@pytest.fixture(autouse=True, params=[True, False], ids=["bfloat16", "float32"])
def _multiplied(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this processor would choose."""
    monkeypatch.setattr(device, "_bfloat16_pays", lambda: request.param)


def load(made: dict[str, Any]) -> tuple[DenseModel, dict[str, Batch]]:
    source = sources.load(from_dict(made))
    lengths = source.task_file.max_length_of
    data = {
        name: task_data.load(name, spec, source.reads, source.classes(name), lengths(name))
        for name, spec in source.task_file.tasks.items()
    }
    return source, {name: next(of_task.shuffled(8, 0)) for name, of_task in data.items()}


def masks_of(source: DenseModel) -> Masks:
    """Half of each weight's blocks, but all of the first one's for the last task."""
    tasks, random = tuple(source.models), np.random.default_rng(0)
    keep = {}
    for info in source.paged:
        order = random.permuted(np.tile(np.arange(info.grid.count)[:, None], len(tasks)), axis=0)
        keep[info.name] = order < max(1, info.grid.count // 2)
    keep[source.paged[0].name][:, -1] = True
    return Masks(tasks, keep)


def learnt(source: DenseModel, task: str, logits: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients of what paged weights hold."""
    error = loss(logits, batch.labels, source.task_file.tasks[task].kind)
    source.models[task].zero_grad()
    error.backward()  # type: ignore[no-untyped-call]
    gradients = {}
    for info in source.paged:
        gradient = source.linear(task, info.name).weight.grad
        assert gradient is not None
        gradients[info.name] = gradient.clone()
    return error.detach(), gradients


def compare(source: DenseModel, batches: dict[str, Batch], dtype: str) -> None:
    masks = masks_of(source)
    weights = {info.name: source.linear(masks.tasks[0], info.name).weight for info in source.paged}
    rounding = None
    if dtype == "int4":
        rounding = Rounding.of(source, weights, 10)
        assert rounding is not None
        rounding.update(0)
    skipping = SparseProducts(source, masks, rounding)
    for task, batch in batches.items():
        wanted, theirs = learnt(source, task, masked_logits(source, masks, task, batch, rounding), batch)
        found, ours = learnt(source, task, skipping.logits(task, batch), batch)
        torch.testing.assert_close(found, wanted, rtol=0.02, atol=0.02)
        for name, gradient in ours.items():
            dropped = ~masks.spread(task, next(info for info in source.paged if info.name == name)).bool()
            assert not gradient[dropped].any()
            scale = float(theirs[name].abs().max())
            torch.testing.assert_close(gradient, theirs[name], rtol=0, atol=0.1 * scale + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int4"])
@pytest.mark.parametrize("made", [tiny.assistant, tiny.clerk, tiny.camera])
def test_losses_and_gradients_are_those_of_masked_weights(made: Any, dtype: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, batches = load(made(tmp_path, dtype=dtype))
    compare(source, batches, dtype)


@pytest.mark.slow
def test_layers_that_were_set_upright_skip_dropped_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = tiny.writer(tmp_path)
    config = GPT2Config(vocab_size=16, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(made["model"])
    source, batches = load(made)
    masks = masks_of(source)
    first = {sparse.info.name for sparse in SparseProducts(source, masks, None)._sparse[masks.tasks[0]].values()}
    assert first == {info.name for info in source.paged}
    compare(source, batches, "bfloat16")


@pytest.mark.slow
def test_a_weight_that_is_not_asked_for_by_a_linear_layer_is_masked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    source, batches = load(tiny.assistant(tmp_path, dtype="int4"))
    for info in source.paged:
        layer = source.linear("animal", info.name)
        monkeypatch.setattr(layer, "forward", lambda x, of=layer: x @ of.weight.T + of.bias)
    compare(source, batches, "int4")


def test_weights_that_keep_most_blocks_are_multiplied_whole(tmp_path: Path) -> None:
    source, _ = load(tiny.assistant(tmp_path))
    masks = masks_of(source)
    found = SparseProducts(source, masks, None)
    *_, last = masks.tasks
    names = {task: {sparse.info.name for sparse in of.values()} for task, of in found._sparse.items()}
    everything = {info.name for info in source.paged if masks.blocks(last, info).mean() <= MOST_KEPT}
    assert source.paged[0].name not in everything
    assert names[last] == everything


def test_weights_of_another_form_are_multiplied_whole(tmp_path: Path) -> None:
    source, batches = load(tiny.assistant(tmp_path))
    first, second, *_ = source.paged
    weight = source.linear("animal", first.name).weight
    weight.data = weight.data.T.contiguous().T
    source.linear("animal", second.name).bfloat16()
    found = SparseProducts(source, masks_of(source), None)._sparse[next(iter(batches))]
    assert {sparse.info.name for sparse in found.values()}.isdisjoint({first.name, second.name})


def test_a_processor_where_skipping_does_not_pay_learns_by_whole_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = load(tiny.assistant(tmp_path))
    masks = masks_of(source)
    for pays in (True, False):
        monkeypatch.setattr(sparse_products, "_skipping_pays", lambda *_, pays=pays: pays)
        assert (SparseProducts.of(source, masks, None) is not None) == pays


def test_weights_of_float32_are_not_learnt_through_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_products, "_skipping_pays", lambda *_: True)
    source, _ = load(tiny.assistant(tmp_path, dtype="float32"))
    narrow = device.multiplies_in_bfloat16(torch.device("cpu"))
    assert (SparseProducts.of(source, masks_of(source), None) is not None) == narrow
