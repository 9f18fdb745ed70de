"""Which modules count as linear layers, and layers that hold their weights the other way round."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from weightpager.nn.experts import is_linear, set_as_published, set_upright
from weightpager.nn.skeleton import empty_on_meta, missing_values


class Named(nn.Linear):
    """With nothing of its own."""


class Doubling(nn.Linear):
    """Computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [nn.Linear, Named, FalconLinear])
def test_what_computes_as_a_linear_layer_is_one(kind: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    layer, x = kind(5, 3), torch.randn(2, 4, 5)
    assert is_linear(layer)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    "module",
    [Doubling(5, 3), Conv1D(3, 5), nn.MultiheadAttention(4, 2).out_proj, nn.Bilinear(2, 2, 2), nn.Identity(), None],
    ids=lambda module: type(module).__name__,
)
def test_what_computes_something_else_or_is_read_otherwise_is_none(module: object) -> None:
    assert not is_linear(module)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Conv1D(6, 5), nn.Sequential(nn.ReLU(), Conv1D(3, 6)), nn.Linear(3, 2))


def test_a_layer_set_upright_computes_the_same_and_comes_back_bit_for_bit() -> None:
    changed, original, x = model(), model(), torch.randn(2, 4, 5)
    set_upright(changed)
    layers = [module for module in changed.modules() if is_linear(module)]
    assert [(layer.out_features, layer.in_features) for layer in layers] == [(6, 5), (3, 6), (2, 3)]
    assert [tuple(layer.weight.shape) for layer in layers] == [(6, 5), (3, 6), (2, 3)]
    torch.testing.assert_close(changed(x), original(x))
    set_as_published(changed)
    assert list(changed.state_dict()) == list(original.state_dict())
    for name, tensor in original.state_dict().items():
        assert torch.equal(changed.state_dict()[name], tensor)
    assert torch.equal(changed(x), original(x))


def test_layers_without_memory_are_set_upright_too() -> None:
    with empty_on_meta():
        empty = model()
        set_upright(empty)
    assert {"0.weight", "1.1.weight", "2.weight"} <= set(missing_values(empty))
    assert tuple(empty[0].weight.shape) == (6, 5)
