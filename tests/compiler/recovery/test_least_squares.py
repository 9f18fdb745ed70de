"""Least squares of one weight: against dense linear algebra, row by row and column by column."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.recovery.least_squares import RIDGE, fed_back, refitted
from weightpager.compiler.recovery.rounding import stored
from weightpager.errors import CompileError
from weightpager.page_dtype import ENCODINGS

INT4 = ENCODINGS["int4"]


def moments_of(tasks: int, columns: int) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [torch.randn(80, columns) * torch.rand(columns) for _ in range(tasks)]
    dense = [x + 0.1 * torch.randn_like(x) for x in inputs]
    return [x.T @ x / 80 for x in inputs], [x.T @ y / 80 for x, y in zip(inputs, dense, strict=True)]


def spread(mask: Tensor, grid: BlockGrid) -> Tensor:
    whole = mask.repeat_interleave(grid.block.rows, 0).repeat_interleave(grid.block.cols, 1)
    return whole[: grid.out_features, : grid.in_features]


@given(st.integers(1, 3), st.integers(1, 20), st.integers(2, 40), st.integers(0, 1000))
def test_every_row_is_solved(tasks: int, rows: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    grid = BlockGrid(rows, columns, BlockShape(8, 8))
    original = torch.randn(rows, columns)
    a, c = moments_of(tasks, columns)
    keep = [torch.rand(grid.rows, grid.cols) < 0.6 for _ in range(tasks)]
    found = refitted(original, a, c, keep, grid)
    masks = [spread(mask, grid) for mask in keep]
    ridge = RIDGE * sum(float(moment.diagonal().mean()) for moment in a)
    for row in range(rows):
        system = ridge * torch.eye(columns, dtype=torch.float64)
        goal = ridge * original[row].double()
        for mask, of_inputs, across in zip(masks, a, c, strict=True):
            d = torch.diag(mask[row]).double()
            system += d @ of_inputs.double() @ d
            goal += d @ across.double() @ original[row].double()
        torch.testing.assert_close(found[row], torch.linalg.solve(system, goal).float(), rtol=1e-4, atol=1e-4)
    untouched = ~torch.stack(masks).any(0)
    assert torch.equal(found[untouched], original[untouched])


@given(st.integers(1, 3), st.integers(1, 100), st.integers(0, 2**16))
def test_feedback_is_the_best_answer_of_the_columns_that_are_left(count: int, columns: int, seed: int) -> None:
    """After each column those that aren't rounded yet are solved for anew, by dense linear algebra."""
    random = np.random.default_rng(seed)
    weight = random.normal(size=(count, 3, columns))
    x = random.normal(size=(count, 2 * columns, columns))
    hessian = x.transpose(0, 2, 1) @ x + 0.1 * np.eye(columns)
    found = fed_back(weight, np.full_like(weight, 0.25), np.linalg.cholesky(hessian), INT4)
    for of_one, of_found, of_weight in zip(hessian, found, weight, strict=True):
        left = of_weight.copy()
        for at in range(columns - 1, -1, -1):
            whole = np.rint(left[:, at] / 0.25).clip(INT4.least, INT4.largest) * 0.25
            assert np.array_equal(of_found[:, at], whole)
            left[:, :at] -= np.outer(whole - left[:, at], np.linalg.solve(of_one[:at, :at], of_one[:at, at]))


@pytest.mark.parametrize("size", [(48, 64), (40, 100)])
@pytest.mark.parametrize("at_once", [1, 1 << 26], ids=["a row at once", "all rows at once"])
def test_values_with_feedback_lie_on_the_grid_and_cost_less(
    size: tuple[int, int], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightpager.compiler.recovery.least_squares.BYTES_AT_ONCE", at_once)
    torch.manual_seed(0)
    grid = BlockGrid(*size, BlockShape(16, 32))
    weight = 0.05 * torch.randn(size)
    inputs = [torch.randn(500, 20) @ torch.randn(20, size[1]) + 0.3 * torch.randn(500, size[1]) for _ in range(2)]
    moments = [x.T @ x / len(x) for x in inputs]
    keep = [torch.rand(grid.rows, grid.cols) < 0.6 for _ in inputs]
    keep[0][0] = keep[1][0] = False  # a row of blocks that no task keeps
    found = refitted(weight, moments, moments, keep, grid, INT4)
    masks = [spread(mask, grid) for mask in keep]
    used = torch.stack(masks).any(0)
    assert torch.equal(found[~used], weight[~used])
    kept = torch.where(used, found, 0.0)
    assert torch.equal(stored(kept, grid, "int4"), kept)

    best = refitted(weight, moments, moments, keep, grid)

    def cost(values: Tensor) -> float:
        off = [(values - best) * mask for mask in masks]
        return sum(float((d @ moment * d).sum()) for d, moment in zip(off, moments, strict=True))

    assert cost(found) < 0.6 * cost(stored(best, grid, "int4"))


def test_inputs_that_are_not_finite_are_refused() -> None:
    grid, moment = BlockGrid(8, 8, BlockShape(8, 8)), torch.full((8, 8), torch.nan)
    with pytest.raises(CompileError, match="expected finite inputs"):
        refitted(torch.ones(8, 8), [moment], [moment], [torch.ones(1, 1, dtype=torch.bool)], grid)
