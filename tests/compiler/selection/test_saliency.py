"""Calibration and the saliency of blocks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

import tiny_models as tiny
from weightpager.compiler import data, task_file
from weightpager.compiler.data import Batch
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.selection.saliency import block_saliency, calibrate, normalised
from weightpager.compiler.training import loss
from weightpager.errors import CompileError


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "autocast", nullcontext)


def load(folder: Path, *kinds: str, **more: Any) -> DenseModel:
    content = {"model": "model", "calibration": {"max_length": 16}, "tasks": tiny.tasks(folder, *kinds), **more}
    return dense_model.load(task_file.from_dict(content, folder))


def batches(found: DenseModel, task: str, items: int = 12, size: int = 4) -> list[Batch]:
    spec = found.task_file.tasks[task]
    held = data.load(task, spec, found.tokenizer, found.classes(task), found.task_file.max_length_of(task))
    return held.calibration(items, size)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DenseModel:
    folder = tmp_path_factory.mktemp("encoder")
    tiny.bert(folder / "model")
    return load(folder, "text", "tokens")


def test_gradients_are_those_of_backward(encoder: DenseModel) -> None:
    some = batches(encoder, "text")
    found = calibrate(encoder, "text", some)
    model = encoder.models["text"]
    wanted: dict[str, torch.Tensor] = {}
    for batch in some:
        model.zero_grad()
        torch.autograd.backward(cross_entropy(model(**batch.inputs).logits, batch.labels))
        for info in encoder.paged:
            weight = encoder.linear("text", info.name).weight
            assert weight.grad is not None
            squares = (weight.detach() * weight.grad) ** 2
            wanted[info.name] = wanted.get(info.name, torch.zeros(())) + squares
    model.zero_grad()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value.sqrt())


def test_gradient_saliency_sums_roots_over_blocks(encoder: DenseModel) -> None:
    found = calibrate(encoder, "text", batches(encoder, "text"))
    blocks = block_saliency(encoder, found.items())
    info = encoder.paged[4]
    value = found[info.name].double().numpy()  # [96, 64]
    wanted = value.reshape(6, 16, 2, 32).sum((1, 3)).reshape(-1)
    np.testing.assert_allclose(blocks[info.name], wanted, rtol=1e-6)
    assert blocks[info.name].dtype == np.float64
    assert {name: len(saliency) for name, saliency in blocks.items()} == {i.name: i.grid.count for i in encoder.paged}


@pytest.mark.parametrize("kind", ["text", "lm"])
def test_a_decoder(tmp_path: Path, kind: str) -> None:
    tiny.llama(tmp_path / "model")
    found = load(tmp_path, kind)
    blocks = block_saliency(found, calibrate(found, kind, batches(found, kind)).items())
    for saliencies in blocks.values():
        assert saliencies.min() >= 0
        assert saliencies.max() > 0
        assert saliencies.std() > 0


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, "text")
    model = found.models["text"]
    model.train()
    model.bert.pooler.eval()
    model.classifier.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    first = calibrate(found, "text", batches(found, "text"), progress=lambda done, total: seen.append((done, total)))
    again = calibrate(found, "text", batches(found, "text"))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_says_when_nothing_finite_comes_out(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, "text")
    with torch.no_grad():
        found.models["text"].classifier.weight.fill_(float("nan"))
    with pytest.raises(CompileError, match=r"tasks\.text: calibration of .* gave NaN or infinity"):
        calibrate(found, "text", batches(found, "text"))
    assert all(parameter.requires_grad for parameter in found.models["text"].parameters())


def test_weights_without_any_saliency_get_ones() -> None:
    assert (normalised(np.zeros(3)) == 1).all()


@given(st.lists(st.just(0.0) | st.floats(1e-100, 1e100), min_size=1).map(np.array))
def test_normalised(saliency: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    found = normalised(saliency)
    assert found.mean() == pytest.approx(1)
    assert (found >= 0).all()
    assert (np.diff(found[np.argsort(saliency)]) >= 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["text", "lm"])
def test_sums_in_several_passes_are_the_same(tmp_path: Path, kind: str) -> None:
    tiny.llama(tmp_path / "model")
    found = load(tmp_path, kind)
    some = batches(found, kind)
    whole = calibrate(found, kind, some)
    largest = max(4 * info.elements for info in found.paged)
    for room, passes in ((1, len(found.paged)), (largest, None), (found.paged_bytes, 1)):
        seen: list[tuple[int, int]] = []
        parts = calibrate(found, kind, some, room, lambda done, total, seen=seen: seen.append((done, total)))
        assert list(parts) == list(whole)
        assert all(torch.equal(parts[name], whole[name]) for name in whole)
        total = seen[-1][1]
        assert seen == [(done, total) for done in range(1, total + 1)]
        if passes is not None:
            assert total == passes * len(some)
    assert all(parameter.grad is None for parameter in found.models[kind].parameters())
