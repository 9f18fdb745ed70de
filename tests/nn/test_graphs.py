"""Paged layers in graphs: what torch.compile and torch.export make of them computes the same."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

import weightpager as wp
from weightpager.errors import EngineClosedError, InferenceOnlyError, TaskNotActiveError
from weightpager.nn import custom_op
from weightpager.nn.linear import PagedLinear

INPUTS = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}


class Layer(nn.Module):
    """A paged layer of a task, and what a model does around it."""

    def __init__(self, paged: nn.Module) -> None:
        super().__init__()
        self.paged = paged

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.paged(x * 2)) + 1


def first_paged(model: nn.Module) -> nn.Module:
    return next(module for module in model.modules() if isinstance(module, PagedLinear))


def compiled(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    found = torch.compile(layer, backend="aot_eager", fullgraph=True)
    return lambda y: found(y)


def exported(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: batch},))
    assert "weightpager.paged_linear" in str(program.graph)
    return program.module()


@pytest.mark.parametrize("made", [compiled, exported])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_graph_computes_what_the_layer_does(
    assistant_bundle: Path, made: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
) -> None:
    torch._dynamo.reset()
    with wp.Engine.from_pretrained(assistant_bundle) as engine, torch.no_grad():
        tasks = list(wp.Bundle.open(assistant_bundle).tasks)[:2]
        with engine.task(tasks[0]) as model:
            layer = Layer(first_paged(model))
            x = torch.randn(4, layer.paged.in_features)
            graph = made(layer, x)
            assert torch.equal(graph(x), layer(x))
        with engine.task(tasks[1]):
            pass  # the pages have moved on
        with engine.task(tasks[0]):
            more = torch.randn(7, layer.paged.in_features)
            assert torch.equal(graph(more), layer(more))
    with pytest.raises(TaskNotActiveError):
        graph(x)


def traced(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return torch.jit.trace(layer, (x,))


def recorded(layer: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    return make_fx(layer)(x)


@pytest.mark.parametrize("made", [traced, recorded])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_other_records_of_operations_have_the_layer_too(
    assistant_bundle: Path, made: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]
) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model, torch.no_grad():
        layer = Layer(first_paged(model))
        graph = made(layer, torch.randn(4, layer.paged.in_features))
        x = torch.randn(7, layer.paged.in_features)
        assert torch.equal(graph(x), layer(x))


def test_a_layer_without_values_has_a_shape(assistant_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model, FakeTensorMode() as mode:
        layer = first_paged(model)
        assert layer(mode.from_tensor(torch.empty(3, layer.in_features))).shape == (3, layer.out_features)


@pytest.mark.skipif(not hasattr(torch.Tag, "cudagraph_unsafe"), reason="this torch can't be told so")
def test_compiled_models_leave_paged_layers_out_of_cuda_graphs() -> None:
    assert torch.Tag.cudagraph_unsafe in torch.ops.weightpager.paged_linear.default.tags


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_whole_model_compiles(assistant_bundle: Path) -> None:
    torch._dynamo.reset()
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model, torch.no_grad():
        expected = model(**INPUTS).logits
        found = torch.compile(model, backend="aot_eager")(**INPUTS).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_copy_of_a_layer_is_another_one_in_graphs(assistant_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model:
        layer = first_paged(model)
        assert copy.copy(layer)._number != layer._number


def test_a_graph_outlives_its_layer_with_an_error() -> None:
    with pytest.raises(EngineClosedError, match="Compile or export again"):
        custom_op.paged_linear(torch.ones(1, 8), 10**9, 8)


def test_gradients_are_refused(assistant_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model:
        layer = first_paged(model)
        x = torch.ones(1, layer.in_features, requires_grad=True)
        with pytest.raises(InferenceOnlyError, match=r"inference_mode"):
            layer(x)
        with torch.no_grad():
            assert not layer(x).requires_grad


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by which torch derives
def test_derivatives_in_forward_mode_are_refused(assistant_bundle: Path) -> None:
    task = next(iter(wp.Bundle.open(assistant_bundle).tasks))
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task(task) as model:
        layer = first_paged(model)
        x = torch.ones(1, layer.in_features)
        with pytest.raises(InferenceOnlyError, match=r"forward-mode"):
            torch.func.jvp(layer, (x,), (x,))
        with torch.no_grad(), forward_ad.dual_level(), pytest.raises(InferenceOnlyError, match=r"forward-mode"):
            layer(forward_ad.make_dual(x, x))
        with forward_ad.dual_level():
            assert layer(x).shape == (1, layer.out_features)


@pytest.mark.slow
def test_a_saved_graph_finds_no_layer_in_another_process(assistant_bundle: Path, tmp_path: Path) -> None:
    text = {"input_ids": torch.tensor([[2, 4, 9, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    with wp.Engine.from_pretrained(assistant_bundle) as engine, engine.task("animal") as module, torch.no_grad():
        torch.export.save(torch.export.export(module, (), text, strict=False), tmp_path / "animal.pt2")
    torch.save(text, tmp_path / "text.pt")
    code = f"""
import torch, weightpager as wp
from weightpager.errors import EngineClosedError
engine = wp.Engine.from_pretrained({str(assistant_bundle)!r})
engine.activate("weather")
program = torch.export.load({str(tmp_path / "animal.pt2")!r})
try:
    program.module()(**torch.load({str(tmp_path / "text.pt")!r}))
except EngineClosedError:
    print("refused")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "refused", done.stderr[-2000:]
