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
from torch import nn
from torch.nn.functional import cross_entropy

import tiny_models as tiny
from weightpager.answers.evaluate import Batch
from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler import data, task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.selection import calibrate as calibration
from weightpager.compiler.selection import saliency
from weightpager.compiler.selection.calibrate import Calibration, calibrate
from weightpager.compiler.selection.saliency import block_saliency, normalised
from weightpager.errors import CompileError


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "autocast", nullcontext)


def load(folder: Path, *kinds: str, **more: Any) -> Source:
    content = {"model": "model", "calibration": {"max_length": 16}, "tasks": tiny.tasks(folder, *kinds), **more}
    return dense_model.load(task_file.from_dict(content, folder))


def batches(found: Source, task: str, items: int = 12, size: int = 4) -> list[Batch]:
    spec = found.task_file.tasks[task]
    held = data.load(task, spec, found.tokenizer, found.classes(task), found.task_file.max_length_of(task))
    return held.calibration(items, size)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("encoder")
    tiny.bert(folder / "model")
    return load(folder, "text", "tokens")


@pytest.fixture(scope="module")
def moments(tmp_path_factory: pytest.TempPathFactory) -> Source:
    folder = tmp_path_factory.mktemp("moments")
    tiny.bert(folder / "model", intermediate_size=72)
    return load(folder, "text", saliency="second-moment")


def test_gradients_are_those_of_backward(encoder: Source) -> None:
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
    assert found.kind == "gradient"
    assert found.values.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found.values[name], value)


def test_gradient_saliency_sums_roots_over_blocks(encoder: Source) -> None:
    found = calibrate(encoder, "text", batches(encoder, "text"))
    blocks = block_saliency(encoder, "text", found)
    info = encoder.paged[4]
    value = found.values[info.name].sqrt().double().numpy()  # [96, 64]
    wanted = value.reshape(6, 16, 2, 32).sum((1, 3)).reshape(-1)
    np.testing.assert_allclose(blocks[info.name], wanted, rtol=1e-6)
    assert blocks[info.name].dtype == np.float64
    assert {name: len(saliency) for name, saliency in blocks.items()} == {i.name: i.grid.count for i in encoder.paged}


def test_padding_changes_no_second_moment(moments: Source) -> None:
    (batch,) = batches(moments, "text", 1, 1)
    padded = Batch(
        {
            "input_ids": nn.functional.pad(batch.inputs["input_ids"], (0, 5)),
            "attention_mask": nn.functional.pad(batch.inputs["attention_mask"], (0, 5)),
        },
        batch.labels,
    )
    plain, found = calibrate(moments, "text", [batch]), calibrate(moments, "text", [padded])
    for name, value in plain.values.items():
        torch.testing.assert_close(found.values[name], value)


def test_second_moments_are_means_over_tokens(moments: Source) -> None:
    some = batches(moments, "text", 6, 2)
    found = calibrate(moments, "text", some)
    name = moments.paged[0].name
    embeddings = moments.models["text"].bert.embeddings
    with torch.inference_mode():
        inputs = [embeddings(b.inputs["input_ids"])[b.inputs["attention_mask"].bool()] for b in some]
    torch.testing.assert_close(found.values[name], torch.cat(inputs).double().square().mean(0))
    assert found.kind == "second-moment"
    assert all(value.dtype == torch.float64 and not value.is_inference() for value in found.values.values())


def test_second_moment_saliency_weighs_inputs(moments: Source) -> None:
    found = calibrate(moments, "text", batches(moments, "text"))
    blocks = block_saliency(moments, "text", found)
    info = moments.paged[4]
    weight = moments.linear("text", info.name).weight.detach().double()
    value = nn.functional.pad(weight.square() * found.values[info.name], (0, 0, 0, 8)).numpy()  # [72 + 8, 64]
    wanted = value.reshape(5, 16, 2, 32).sum((1, 3)).reshape(-1)
    np.testing.assert_allclose(blocks[info.name], wanted / wanted.mean(), rtol=1e-5)


def test_block_obs_is_the_error_that_the_rest_of_the_row_cannot_make_up_for() -> None:
    torch.manual_seed(0)
    grid = BlockGrid(12, 20, BlockShape(8, 8))
    weight = torch.randn(12, 20)
    inputs = torch.randn(500, 20) @ torch.randn(20, 20)
    moments = inputs.T @ inputs / 500
    found = saliency._MEASURES["block-obs"](weight, moments, grid).reshape(2, 3)
    damped = moments.double() + saliency._DAMPING * moments.diagonal().mean() * torch.eye(20)
    for row in range(2):
        for column in range(3):
            dropped = torch.zeros(20, dtype=torch.bool)
            dropped[column * 8 : column * 8 + 8] = True
            error = 0.0
            for w in weight[row * 8 : row * 8 + 8].double():
                best = torch.zeros(20, dtype=torch.float64)
                best[~dropped] = torch.linalg.solve(damped[~dropped][:, ~dropped], damped[~dropped] @ w)
                error += float((best - w) @ damped @ (best - w))
            assert found[row, column] == pytest.approx(error, rel=1e-6)


def test_inputs_without_padding_in_any_shape() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    x = torch.arange(12.0).reshape(2, 2, 3)
    assert calibration._tokens(x, mask).tolist() == x.reshape(4, 3)[:3].tolist()
    assert calibration._tokens(x.reshape(4, 3), mask).tolist() == x.reshape(4, 3)[:3].tolist()
    assert calibration._tokens(x.reshape(1, 4, 3)[:, :3], mask).tolist() == x.reshape(4, 3)[:3].tolist()


@pytest.mark.parametrize("saliency", ["gradient", "second-moment", "block-obs"])
@pytest.mark.parametrize("kind", ["text", "lm"])
def test_a_decoder(tmp_path: Path, saliency: str, kind: str) -> None:
    tiny.llama(tmp_path / "model")
    found = load(tmp_path, kind, saliency=saliency)
    blocks = block_saliency(found, kind, calibrate(found, kind, batches(found, kind)))
    for saliencies in blocks.values():
        assert saliencies.min() >= 0
        assert saliencies.max() > 0
        assert saliency == "gradient" or saliencies.mean() == pytest.approx(1)
        assert saliencies.std() > 0


@pytest.mark.parametrize("saliency", ["gradient", "second-moment", "block-obs"])
def test_the_model_is_left_as_it_was(tmp_path: Path, saliency: str) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, "text", saliency=saliency)
    model = found.models["text"]
    model.train()
    model.bert.pooler.eval()
    model.classifier.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    seen: list[tuple[int, int]] = []
    first = calibrate(found, "text", batches(found, "text"), lambda done, total: seen.append((done, total)))
    again = calibrate(found, "text", batches(found, "text"))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(value, again.values[name]) for name, value in first.values.items())


def test_says_when_nothing_finite_comes_out(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, "text")
    with torch.no_grad():
        found.models["text"].classifier.weight.fill_(float("nan"))
    with pytest.raises(CompileError, match=r"tasks\.text: calibration of .* gave NaN or infinity"):
        calibrate(found, "text", batches(found, "text"))
    assert all(parameter.requires_grad for parameter in found.models["text"].parameters())


def test_says_when_a_layer_sees_no_input(moments: Source) -> None:
    with pytest.raises(CompileError, match="saw no input during calibration"):
        calibrate(moments, "text", [])


def test_weights_without_any_saliency_get_ones(encoder: Source) -> None:
    values = {info.name: torch.zeros(info.grid.in_features, dtype=torch.float64) for info in encoder.paged}
    for saliencies in block_saliency(encoder, "text", Calibration("second-moment", values)).values():
        assert (saliencies == 1).all()


@given(st.lists(st.just(0.0) | st.floats(1e-100, 1e100), min_size=1).map(np.array))
def test_normalised(saliency: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    found = normalised(saliency)
    assert found.mean() == pytest.approx(1)
    assert (found >= 0).all()
    assert (np.diff(found[np.argsort(saliency)]) >= 0).all()
