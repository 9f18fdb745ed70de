"""How much each block matters to a task."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.blocks import BlockGrid
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.selection.calibrate import Calibration
from weightpager.compiler.task_file.fields import Saliency

FloatArray = npt.NDArray[np.float64]

_DAMPING = 0.01
"""Of the mean diagonal, added to E[x xᵀ], which a few thousand tokens leave singular."""


def block_saliency(source: Source, task: str, calibration: Calibration) -> dict[str, FloatArray]:
    """Saliency ``[grid.rows * grid.cols]`` of every paged weight's blocks, row-major.

    Gradients tell what a block means for the loss, so they compare blocks of different weights. What is computed from
    inputs alone does not: there each weight is scaled to mean 1, and all weights lose about the same share.
    """
    found = {
        info.name: _MEASURES[calibration.kind](
            source.linear(task, info.name).weight.detach(), calibration.values[info.name], info.grid
        )
        for info in source.paged
    }
    return found if calibration.kind == "gradient" else {name: normalised(values) for name, values in found.items()}


def element_saliency(source: Source, task: str, name: str, calibration: Calibration) -> Tensor:
    """Saliency of every single element of the paged weight ``name``, float32 ``[out_features, in_features]``.

    Blocks sum it up, but for ``block-obs``, which is no sum; there it is what `second-moment` would say.
    """
    values = calibration.values[name]
    if calibration.kind == "gradient":
        return values.sqrt()
    moments = values.diagonal() if calibration.kind == "block-obs" else values
    weight = source.linear(task, name).weight.detach()
    elements = weight.square() * moments.to(weight.dtype)
    return elements / elements.mean().clamp(min=1e-30)  # as `block_saliency` scales it


def normalised(saliency: FloatArray) -> FloatArray:
    """Scale to mean 1, since losses have different units; zeros become ones."""
    mean = saliency.mean()
    return saliency / mean if mean > 0 else np.ones_like(saliency)


def _gradient(_weight: Tensor, squares: Tensor, grid: BlockGrid) -> FloatArray:
    # Rooted before the sum over a block, one-shot accuracy was better than with a plain sum of squares:
    # there a few large weights decide for their whole block.
    return _sums(squares.sqrt(), grid)


def _second_moment(weight: Tensor, moments: Tensor, grid: BlockGrid) -> FloatArray:
    return _sums(weight.square() * moments.to(weight.dtype), grid)


def _block_obs(weight: Tensor, moments: Tensor, grid: BlockGrid) -> FloatArray:
    """Σ over a block's rows of w_b ((H⁻¹)_bb)⁻¹ w_bᵀ with H = E[x xᵀ].

    That is the squared output error that remains when the rest of the row makes up for the block as well as it can
    (optimal brain surgeon, Hassibi and Stork 1992, by blocks).
    """
    size, width = len(moments), grid.block.cols
    damped = moments.double() + _DAMPING * moments.diagonal().mean().clamp(min=1e-30) * torch.eye(size)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))  # [I, I]
    errors = torch.empty(grid.out_features, grid.cols, dtype=torch.float64)
    for column in range(grid.cols):
        span = slice(column * width, min(size, (column + 1) * width))
        part = weight[:, span].double()  # [O, <= BW]
        errors[:, column] = (part * torch.linalg.solve(inverse[span, span], part.T).T).sum(1)
    rows = torch.nn.functional.pad(errors, (0, 0, 0, grid.rows * grid.block.rows - grid.out_features))
    summed: FloatArray = rows.view(grid.rows, grid.block.rows, grid.cols).sum(1).numpy()
    return summed.reshape(-1)


_MEASURES: dict[Saliency, Callable[[Tensor, Tensor, BlockGrid], FloatArray]] = {
    "gradient": _gradient,
    "second-moment": _second_moment,
    "block-obs": _block_obs,
}


def _sums(elements: Tensor, grid: BlockGrid) -> FloatArray:
    blocks: FloatArray = grid.cut(elements.numpy()).sum((2, 3), dtype=np.float64)
    return blocks.reshape(-1)
