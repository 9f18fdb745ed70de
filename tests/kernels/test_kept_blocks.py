"""Products with kept blocks, forward and back, against dense ones under a mask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.model.dense_model import PagedWeightInfo
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.training.masks import drop
from weightpager.kernels.torch.kept_blocks import FrozenBlocks, LearntBlocks, RowRounding, products
from weightpager.page_dtype import ENCODINGS

BLOCKS = st.builds(BlockShape, st.sampled_from([8, 16, 64]), st.sampled_from([8, 32, 128]))
INT4 = ENCODINGS["int4"]

pytestmark = pytest.mark.skipif(not products(), reason="no native module")


def close(found: Tensor | None, wanted: Tensor, within: float) -> None:
    assert found is not None
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=within * float(wanted.abs().max()) + 1e-30)


def rounded(weight: Tensor, grid: BlockGrid) -> tuple[RowRounding, Tensor]:
    """How its rows are rounded, and what becomes of them."""
    rounding = Rounding({"w": weight}, [PagedWeightInfo("w", 0, grid)], INT4, 1)
    rounding.update(0)
    return rounding.rows("w"), rounding("w", weight)


@pytest.mark.slow
@given(
    st.integers(1, 90),
    st.integers(1, 200),
    BLOCKS,
    st.sampled_from([1, 2, 7, 300]),
    st.floats(0, 1),
    st.booleans(),
    st.booleans(),
    st.sampled_from([torch.bfloat16, torch.float32]),
    st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_the_masked_weight(
    outs: int,
    ins: int,
    block: BlockShape,
    tokens: int,
    density: float,
    rounds: bool,
    biased: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    torch.manual_seed(seed % 2**31)
    grid = BlockGrid(outs, ins, block)
    kept = np.random.default_rng(seed).random((grid.rows, grid.cols)) < density
    x, weight, bias = torch.randn(tokens, ins), torch.randn(outs, ins), torch.randn(outs)
    rows, values = rounded(weight, grid) if rounds else (None, weight)
    masked = drop(values, torch.from_numpy(kept), grid).bfloat16().float()
    x, dy = x.to(dtype), torch.randn(tokens, outs).to(dtype)
    within = 0.01 if dtype == torch.bfloat16 else 1e-5
    for number in range(len(products())):
        blocks = LearntBlocks(kept, grid, number)
        given_ = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        y = blocks.linear(given_[0], given_[1], given_[2] if biased else None, rows)
        assert y.dtype == dtype
        y.backward(dy)
        close(y, x.float() @ masked.T + (bias if biased else 0), within)
        close(given_[0].grad, dy.float() @ masked, within)
        close(given_[1].grad, drop(dy.float().T @ x.float(), torch.from_numpy(kept), grid), 1e-5)
        if biased:
            close(given_[2].grad, dy.float().sum(0), 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_number_of_threads_finds_the_same(dtype: torch.dtype) -> None:
    grid = BlockGrid(80, 96, BlockShape(16, 32))
    blocks = LearntBlocks(np.random.default_rng(0).random((grid.rows, grid.cols)) < 0.5, grid)
    x, weight, before = torch.randn(2, 200, 96).to(dtype), torch.randn(80, 96), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            learnt, put = weight.clone().requires_grad_(), x.clone().requires_grad_()
            y = blocks.linear(put, learnt)
            y.float().square().sum().backward()
            found.append((y.detach(), learnt.grad, put.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert one is not None
            assert two is not None
            assert torch.equal(one, two)


def test_a_gradient_lies_on_the_host_whatever_the_default_device() -> None:
    grid = BlockGrid(20, 40, BlockShape(16, 32))
    blocks, x, dy = LearntBlocks(np.ones((2, 2), bool), grid), torch.randn(3, 40), torch.randn(3, 20)
    with torch.device("meta"):
        found = blocks.gradient(x, dy)
    close(found, dy.T @ x, 1e-5)


def test_an_input_may_be_one_token_without_an_axis_for_it() -> None:
    grid = BlockGrid(20, 40, BlockShape(16, 32))
    blocks, weight = LearntBlocks(np.ones((2, 2), bool), grid), torch.randn(20, 40)
    frozen = FrozenBlocks(blocks, weight)
    for frozen_or_learnt in (frozen.linear, lambda x, bias: blocks.linear(x, weight, bias)):
        x, bias, dy = torch.randn(40, requires_grad=True), torch.randn(20, requires_grad=True), torch.randn(20)
        frozen_or_learnt(x, bias).backward(dy)
        close(x.grad, dy @ weight.bfloat16().float(), 1e-5)
        close(bias.grad, dy, 1e-5)


def test_what_does_not_fit_is_refused() -> None:
    grid = BlockGrid(20, 40, BlockShape(16, 32))
    with pytest.raises(ValueError, match=r"expected a mask of \(2, 2\) blocks, got \(1, 2\)"):
        LearntBlocks(np.ones((1, 2), bool), grid)
    blocks = LearntBlocks(np.ones((2, 2), bool), grid)
    for weight in (torch.zeros(20, 41), torch.zeros(20, 40).bfloat16(), torch.zeros(40, 20).T):
        with pytest.raises(ValueError, match=r"weight: expected contiguous float32 \[20, 40\]"):
            blocks.linear(torch.zeros(3, 40), weight)
        with pytest.raises(ValueError, match=r"weight: expected contiguous float32 \[20, 40\]"):
            FrozenBlocks(blocks, weight)
    with pytest.raises(ValueError, match=r"x: expected \[..., 40\]"):
        blocks.linear(torch.zeros(3, 41), torch.zeros(20, 40))
