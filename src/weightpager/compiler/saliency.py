"""How much each block matters to a task."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from weightpager.blocks import BlockGrid
from weightpager.compiler.calibrate import Calibration
from weightpager.compiler.source import Source

FloatArray = npt.NDArray[np.float64]


def block_saliency(source: Source, task: str, calibration: Calibration) -> dict[str, FloatArray]:
    """Saliency ``[grid.rows * grid.cols]`` of every paged weight's blocks, row-major, with mean 1.

    Losses have different units, so every task and weight is scaled by itself; a weight whose blocks all score zero
    gets ones.
    """
    return {
        info.name: normalised(_blocks(calibration, source.linear(task, info.name).weight, info.name, info.grid))
        for info in source.paged
    }


def normalised(saliency: FloatArray) -> FloatArray:
    """Scale to mean 1; zeros become ones."""
    mean = saliency.mean()
    return saliency / mean if mean > 0 else np.ones_like(saliency)


def _blocks(calibration: Calibration, weight: Tensor, name: str, grid: BlockGrid) -> FloatArray:
    value = calibration.values[name]
    if calibration.kind == "second-moment":
        elements = weight.detach().square() * value.to(weight.dtype)  # [O, I]
    else:
        # Rooted before the sum over a block, one-shot accuracy was better than with a plain sum of squares:
        # there a few large weights decide for their whole block.
        elements = value.sqrt()
    blocks: FloatArray = grid.cut(elements.numpy()).sum((2, 3), dtype=np.float64)
    return blocks.reshape(-1)
