"""How much each block matters to a task, by the gradients on its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.paged_weights import requiring_gradients
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.errors import CompileError
from weightpager.progress import StepProgress, silent

_BYTES = 4  # of a sum

FloatArray = npt.NDArray[np.float64]

Calibration = dict[str, Tensor]
"""Paged weight → √Σ(W·∂L/∂W)², over a task's calibration batches, float32 ``[out_features, in_features]``.

Summed over a block, roots gave better one-shot accuracy than squares: of these a few large weights decide for their
whole block. Many squares are also too small for float32's exponents, which makes arithmetic 35 times as slow.
"""


def calibrate(
    source: DenseModel,
    task: str,
    batches: Sequence[Batch],
    calibration_bytes: int | None = None,
    progress: StepProgress = silent,
) -> Calibration:
    """Pass over the batches; nothing is kept per token. The model is left as it was found.

    Sums may take ``calibration_bytes`` while they grow: with less than all of them take, each pass makes those of some
    layers. What comes out is the same. None makes all in one pass.

    Raises:
        CompileError: a loss isn't finite, or the storage refused what is held on it.
    """
    found: Calibration = {}
    passes = _passes(source.paged, calibration_bytes)
    for number, infos in enumerate(passes):

        def told(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(passes) * total)

        sums = _sums(source, task, infos, batches, told)
        for name in list(sums):  # each is given back as soon as it is held elsewhere
            found[name] = source.scratch.hold(sums.pop(name))
    return found


def _passes(paged: Sequence[PagedWeightInfo], calibration_bytes: int | None) -> list[list[PagedWeightInfo]]:
    """Weights in turn, as many together as have room; at least one."""
    if calibration_bytes is None:
        return [list(paged)]
    passes: list[list[PagedWeightInfo]] = []
    left = 0
    for info in paged:
        if not passes or info.elements * _BYTES > left:
            passes.append([])
            left = calibration_bytes
        passes[-1].append(info)
        left -= info.elements * _BYTES
    return passes


def _sums(
    source: DenseModel, task: str, infos: Sequence[PagedWeightInfo], batches: Sequence[Batch], progress: StepProgress
) -> Calibration:
    """The sums of some weights alone, in one pass."""
    model, kind = source.models[task], source.task_file.tasks[task].kind
    weights = {info.name: source.linear(task, info.name).weight for info in infos}
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    with evaluating(model), requiring_gradients(model, list(weights.values())), _adding(weights, sums):
        for done, batch in enumerate(batches, 1):
            error = loss(masked_logits(source, None, task, batch), batch.labels, kind)
            if error.requires_grad:  # a weight that this task doesn't use counts as useless
                torch.autograd.backward(error)
            progress(done, len(batches))
    for name, value in sums.items():
        if not torch.isfinite(value).all():
            raise CompileError(f"tasks.{task}: calibration of {name!r} gave NaN or infinity")
        value.sqrt_()
    return sums


@contextmanager
def _adding(weights: Mapping[str, Tensor], sums: Calibration) -> Iterator[None]:
    """Add (W·∂L/∂W)² to sums as soon as a gradient is there, and drop it: all together are as large as the sums."""

    def add(name: str, weight: Tensor) -> None:
        assert weight.grad is not None
        sums[name] += (weight.detach() * weight.grad).square_()
        weight.grad = None

    with ExitStack() as hooks:
        for name, weight in weights.items():
            weight.grad = None
            hook = weight.register_post_accumulate_grad_hook(partial(add, name))  # type: ignore[no-untyped-call]
            hooks.callback(hook.remove)
        yield


def block_saliency(source: DenseModel, calibration: Iterable[tuple[str, Tensor]]) -> dict[str, FloatArray]:
    """Saliency ``[grid.rows * grid.cols]`` of paged weights' blocks, row-major; comparable between weights.

    ``calibration`` has the items of a `Calibration`, or makes them one by one.
    """
    grids = {info.name: info.grid for info in source.paged}
    return {
        name: grids[name].cut(values.numpy()).sum((2, 3), dtype=np.float64).reshape(-1) for name, values in calibration
    }


def normalised(saliency: FloatArray) -> FloatArray:
    """Scale to mean 1, since losses have different units; zeros become ones."""
    mean = saliency.mean()
    return saliency / mean if mean > 0 else np.ones_like(saliency)
