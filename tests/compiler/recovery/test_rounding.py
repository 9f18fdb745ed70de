"""Training through the rounding of pages, and rounding with error feedback."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.model.dense_model import PagedWeightInfo
from weightpager.compiler.recovery.rounding import EVERY, Rounding, divisors, scales, stored
from weightpager.page_dtype import ENCODINGS, best_scales

INT4 = ENCODINGS["int4"]
GRIDS = st.builds(
    BlockGrid,
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([BlockShape(8, 8), BlockShape(16, 32), BlockShape(64, 16)]),
)


def drawn(grid: BlockGrid, seed: int) -> Tensor:
    random = np.random.default_rng(seed)
    weight = random.standard_normal((grid.out_features, grid.in_features))
    weight *= 10.0 ** random.integers(-6, 6, (grid.out_features, 1))
    weight[random.random(weight.shape) < 0.1] = 0
    weight[random.random(grid.out_features) < 0.1] = 0
    return torch.from_numpy(weight.astype(np.float32))


def rounding(grid: BlockGrid, weight: Tensor, steps: int, *, checked: bool = True) -> Rounding:
    return Rounding({"w": weight}, [PagedWeightInfo("w", 0, grid)], INT4, steps, checked=checked)


@given(GRIDS, st.sampled_from(["int4", "int8"]), st.integers(0, 2**16))
def test_torch_finds_the_scales_that_packing_finds(grid: BlockGrid, dtype: str, seed: int) -> None:
    weight, encoding = drawn(grid, seed), ENCODINGS[dtype]
    bits = best_scales(np.ascontiguousarray(grid.cut(weight.numpy())), encoding)  # [rows, cols, block rows]
    wanted = torch.from_numpy(bits.astype(np.int32) << 16).view(torch.float32)
    found = scales(weight, grid, divisors(weight, grid, encoding))
    some = wanted != 0
    assert torch.equal(found.transpose(1, 2)[some], wanted[some])
    assert not found.transpose(1, 2)[~some].any()


@given(GRIDS, st.integers(0, 2**16))
def test_training_sees_what_pages_give_back(grid: BlockGrid, seed: int) -> None:
    weight = nn.Parameter(drawn(grid, seed))
    seen = rounding(grid, weight, 10)
    seen.update(0)
    found = seen("w", weight)
    assert torch.equal(found, stored(weight, grid, "int4"))
    torch.autograd.backward((found * 3).sum())
    assert weight.grad is not None
    assert (weight.grad == 3).all()  # as if nothing had been rounded


def test_scales_are_searched_now_and_then_and_follow_the_largest_weight_between() -> None:
    grid = BlockGrid(16, 32, BlockShape(16, 32))
    weight = nn.Parameter(drawn(grid, 0) + 0.5)
    seen = rounding(grid, weight, 100)
    seen.update(0)
    first = seen("w", weight)
    with torch.no_grad():
        weight *= 4
    seen.update(1)
    assert torch.equal(seen("w", weight), 4 * first)
    with torch.no_grad():
        weight += 7 * drawn(grid, 1)
    seen.update(EVERY - 1)
    kept = {name: found.clone() for name, found in seen.state().items()}
    assert not torch.equal(seen("w", weight), stored(weight, grid, "int4"))
    seen.update(EVERY)
    assert torch.equal(seen("w", weight), stored(weight, grid, "int4"))
    other = rounding(grid, weight, 100)
    assert other.fits(kept)
    assert not other.fits({})
    other.restore(kept)
    assert not torch.equal(other("w", weight), stored(weight, grid, "int4"))


@pytest.mark.parametrize("checked", [True, False])
def test_scales_are_searched_where_a_training_is_measured(checked: bool) -> None:
    grid = BlockGrid(16, 32, BlockShape(16, 32))
    weight = nn.Parameter(drawn(grid, 0) + 0.5)
    seen = rounding(grid, weight, 2 * EVERY, checked=checked)
    seen.update(0)
    with torch.no_grad():
        weight += 7 * drawn(grid, 1)
    seen.update(4)
    assert torch.equal(seen("w", weight), stored(weight, grid, "int4")) == checked
