"""How much each block matters to a task, by the gradients on its data."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.named_parameters import requiring_gradients
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import masked_logits
from weightpager.errors import CompileError
from weightpager.progress import Steps, silent

FloatArray = npt.NDArray[np.float64]

Calibration = dict[str, Tensor]
"""Paged weight → √Σ(W·∂L/∂W)², over a task's calibration batches, float32 ``[out_features, in_features]``.

Summed over a block, roots gave better one-shot accuracy than squares: of these a few large weights decide for their
whole block. Many squares are also too small for float32's exponents, which makes arithmetic 35 times as slow.
"""


def calibrate(source: Source, task: str, batches: Sequence[Batch], progress: Steps = silent) -> Calibration:
    """One pass over the batches; nothing is kept per token. The model is left as it was found.

    Raises:
        CompileError: a loss isn't finite.
    """
    model, kind = source.models[task], source.task_file.tasks[task].kind
    weights = {info.name: source.linear(task, info.name).weight for info in source.paged}
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    with evaluating(model), requiring_gradients(model, list(weights.values())):
        for done, batch in enumerate(batches, 1):
            error = loss(masked_logits(source, None, task, batch), batch.labels, kind)
            # autograd.grad leaves no .grad behind, and a weight that this task doesn't use counts as useless.
            gradients = torch.autograd.grad(error, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    sums[name] += (weight.detach() * gradient).square_()
            progress(done, len(batches))
    for name, value in sums.items():
        if not torch.isfinite(value).all():
            raise CompileError(f"tasks.{task}: calibration of {name!r} gave NaN or infinity")
        value.sqrt_()
    return sums


def block_saliency(source: Source, calibration: Calibration) -> dict[str, FloatArray]:
    """Saliency ``[grid.rows * grid.cols]`` of every paged weight's blocks, row-major; comparable between weights."""
    return {
        info.name: info.grid.cut(calibration[info.name].numpy()).sum((2, 3), dtype=np.float64).reshape(-1)
        for info in source.paged
    }


def normalised(saliency: FloatArray) -> FloatArray:
    """Scale to mean 1, since losses have different units; zeros become ones."""
    mean = saliency.mean()
    return saliency / mean if mean > 0 else np.ones_like(saliency)
