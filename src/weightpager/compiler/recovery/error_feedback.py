"""Rounding with error feedback: the weights of a row that are rounded later make up for those that were before.

GPTQ (arXiv 2210.17323) on what least squares minimises (`closed_form`): moving a row w by d costs d H dᵀ with
H = Σ_t D_t A_t D_t + r I, whose D_t is the same for all rows of a block. So a row of blocks has one H, over the columns
that any task keeps. With H⁻¹ = Uᵀ U, U upper triangular, rounding column j by e moves the columns after it by
−e U_j,: / U_jj, which is their best answer. Columns of much energy are rounded first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from weightpager.blocks import BlockGrid
from weightpager.compiler.recovery.rounding import divisors, scales
from weightpager.page_dtype import Encoding

_AT_ONCE = 64  # columns between two updates of all that come after them


def fed_back(
    weight: Tensor, a: Sequence[Tensor], keep: Sequence[Tensor], ridge: float, grid: BlockGrid, encoding: Encoding
) -> Tensor:
    """The weight on the grids of its blocks' rows, whose scales are those of ``weight``.

    Args:
        weight: float32 ``[out_features, in_features]``; what no task keeps stays as it is.
        a: of every task, E[x xᵀ] of its inputs, ``[in_features, in_features]``.
        keep: of every task, bool [grid rows, grid cols].
        ridge: r, more than 0.
        grid: the weight's blocks.
        encoding: of their pages.
    """
    rounded = weight.clone()
    scaled = scales(weight, grid, divisors(weight, grid, encoding))
    width, columns = grid.block.cols, torch.arange(grid.in_features)
    for row in range(grid.rows):
        kept = torch.stack([of_task[row] for of_task in keep])  # [tasks, grid cols]
        used = kept.any(0)[columns // width].nonzero()[:, 0]
        if len(used) == 0:
            continue
        energy = torch.full((len(used),), ridge, dtype=torch.float64)  # H's diagonal
        for mask, moment in zip(kept, a, strict=True):
            energy += mask[used // width] * moment.diagonal()[used].double()
        at = used[energy.argsort(descending=True, stable=True)]
        rows = slice(row * grid.block.rows, min((row + 1) * grid.block.rows, grid.out_features))
        steps = scaled[row, : rows.stop - rows.start, at // width].double()  # [rows, used]
        hessian = _hessian(a, kept[:, at // width].double(), ridge, at)
        rounded[rows, at] = feed_back(weight[rows, at].double(), steps, hessian, encoding).float()
    return rounded


def _hessian(a: Sequence[Tensor], masks: Tensor, ridge: float, at: Tensor) -> Tensor:
    """H of a row of blocks over the columns ``at``, float64; as much memory as three of it at its most.

    Args:
        a: of every task, E[x xᵀ].
        masks: float64 [tasks, columns], 1 where a task keeps a column.
        ridge: r.
        at: int64 [columns].
    """
    hessian = torch.eye(len(at), dtype=torch.float64) * ridge
    for mask, moment in zip(masks, a, strict=True):
        hessian += moment[at][:, at].double().mul_(mask[:, None]).mul_(mask)
    return hessian


def feed_back(weight: Tensor, scaled: Tensor, hessian: Tensor, encoding: Encoding) -> Tensor:
    """Round the columns of ``weight [rows, columns]`` from the first to the last; all in float64.

    Args:
        weight: to be rounded.
        scaled: scales of the same shape.
        hessian: [columns, columns], positive definite.
        encoding: of the pages.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse, upper=True).numpy()
    left, rounded = weight.numpy().copy(), np.empty(weight.shape)
    steps, divisible = scaled.numpy(), torch.where(scaled == 0, 1.0, scaled).numpy()
    # Columns are few numbers each, on which numpy takes a fifth of torch's time.
    for start in range(0, left.shape[1], _AT_ONCE):
        end = min(start + _AT_ONCE, left.shape[1])
        errors = np.empty((len(left), end - start))
        for column in range(start, end):
            numbers = np.rint(left[:, column] / divisible[:, column]).clip(encoding.least, encoding.largest)
            rounded[:, column] = numbers * steps[:, column]
            errors[:, column - start] = (left[:, column] - rounded[:, column]) / upper[column, column]
            left[:, column + 1 : end] -= np.outer(errors[:, column - start], upper[column, column + 1 : end])
        left[:, end:] -= errors @ upper[start:end, end:]
    return torch.from_numpy(rounded)
