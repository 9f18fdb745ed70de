"""Products stand for weights wherever a module uses these."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from weightpager.compiler.training.sparse_products import Multiplying, is_plain
from weightpager.nn.experts import UprightLinear


@dataclass(frozen=True)
class Doubled:
    values: Tensor

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.weight(), bias)

    def weight(self) -> Tensor:
        return 2 * self.values


X = torch.arange(6.0).reshape(2, 3)
LAYER, OTHER = nn.Linear(3, 4), nn.Linear(3, 4)
USES: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda weight: linear(X, weight, LAYER.bias),
    "linear by keywords": lambda weight: linear(X, weight, bias=LAYER.bias),
    "a product": lambda weight: X @ weight.T,
    "parts": lambda weight: X @ weight.chunk(2)[1].T,
    "in a list": lambda weight: torch.cat([OTHER.weight, weight]),
    "in a tuple of a list": lambda weight: torch.stack((weight, OTHER.weight)),
    "by keyword": lambda weight: torch.add(input=OTHER.weight, other=weight),
}


@pytest.mark.parametrize("use", USES)
@torch.no_grad()
def test_whatever_uses_a_weight_gets_the_product(use: str) -> None:
    wanted = USES[use](2 * LAYER.weight)
    with Multiplying({id(LAYER.weight): Doubled(LAYER.weight.detach().clone())}):
        found = USES[use](LAYER.weight)
        assert torch.equal(OTHER(X), linear(X, OTHER.weight, OTHER.bias))
        assert LAYER.weight.shape == (4, 3)
    assert torch.equal(found, wanted)


def test_only_plain_layers_have_products() -> None:
    assert is_plain(nn.Linear(3, 4))
    assert is_plain(UprightLinear(Conv1D(4, 3)))
    assert not is_plain(FalconLinear(3, 4))
    assert not is_plain(nn.Linear(3, 4).bfloat16())
    assert not is_plain(nn.LayerNorm(3))
