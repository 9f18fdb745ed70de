"""What a task's data says about each weight: one streaming pass, sums only, nothing kept per token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weightpager.answers.evaluate import Batch, evaluating, loss
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.device import autocast
from weightpager.compiler.model.named_parameters import requiring_gradients
from weightpager.compiler.task_file.fields import Saliency
from weightpager.errors import CompileError
from weightpager.progress import Steps, silent


@dataclass(frozen=True)
class Calibration:
    """Sums over a task's calibration batches, by paged weight.

    Attributes:
        kind: ``gradient``: Σ over batches of (W·∂L/∂W)², float32 ``[out_features, in_features]``;
            ``second-moment``: the mean of x² over tokens that aren't padding, float64 ``[in_features]``;
            ``block-obs``: the mean of x xᵀ, float32 ``[in_features, in_features]``.
    """

    kind: Saliency
    values: dict[str, Tensor]


def calibrate(source: Source, task: str, batches: Sequence[Batch], progress: Steps = silent) -> Calibration:
    """Measure what the task file's ``saliency`` asks for. The model is left as it was found.

    Raises:
        CompileError: a loss or an input isn't finite; a paged layer has seen no input.
    """
    kind = source.task_file.saliency
    with evaluating(source.models[task]):
        values = _MEASURES[kind](source, task, batches, progress)
    for name, value in values.items():
        if not torch.isfinite(value).all():
            raise CompileError(f"tasks.{task}: calibration of {name!r} gave NaN or infinity")
    return Calibration(kind, values)


def _gradients(source: Source, task: str, batches: Sequence[Batch], progress: Steps) -> dict[str, Tensor]:
    model, kind = source.models[task], source.task_file.tasks[task].kind
    weights = {info.name: source.linear(task, info.name).weight for info in source.paged}
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    with requiring_gradients(model, list(weights.values())):
        for done, batch in enumerate(batches, 1):
            with autocast(model.device):
                logits = model(**batch.inputs).logits
            # autograd.grad leaves no .grad behind, and a weight that this task doesn't use counts as useless.
            gradients = torch.autograd.grad(loss(logits, batch.labels, kind), list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    sums[name] += (weight.detach() * gradient).square_()
            progress(done, len(batches))
    return sums


def _second_moments(source: Source, task: str, batches: Sequence[Batch], progress: Steps) -> dict[str, Tensor]:
    return _input_means(source, task, batches, progress, lambda x: x.float().square_().sum(0, dtype=torch.float64))


def _outer_products(source: Source, task: str, batches: Sequence[Batch], progress: Steps) -> dict[str, Tensor]:
    return _input_means(source, task, batches, progress, _outer_product)


def _outer_product(x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # rounded to bfloat16, it would not be positive definite
        return x.float().T @ x.float()


def _input_means(
    source: Source, task: str, batches: Sequence[Batch], progress: Steps, total: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """The mean over tokens of what ``total`` sums over a batch's inputs [N, I], by paged weight."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mask: Tensor | None = None

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = _tokens(arguments[0].detach(), mask)  # [N, I]
            sums[name] = sums[name] + total(x) if name in sums else total(x)
            counts[name] = counts.get(name, 0) + len(x)

        return hook

    names = [info.name for info in source.paged]
    hooks = [source.linear(task, name).register_forward_pre_hook(watch(name)) for name in names]
    try:
        with torch.inference_mode(), autocast(source.models[task].device):
            for done, batch in enumerate(batches, 1):
                mask = batch.tokens  # [B, L]
                source.models[task](**batch.inputs)
                progress(done, len(batches))
    finally:
        for hook in hooks:
            hook.remove()
    for name in names:
        if not counts.get(name):
            raise CompileError(f"tasks.{task}: {name!r} saw no input during calibration; use saliency: gradient")
    return {name: (sums[name] / counts[name]).clone() for name in names}


_MEASURES: dict[Saliency, Callable[[Source, str, Sequence[Batch], Steps], dict[str, Tensor]]] = {
    "gradient": _gradients,
    "second-moment": _second_moments,
    "block-obs": _outer_products,
}


def _tokens(x: Tensor, mask: Tensor | None) -> Tensor:
    """Inputs ``[N, I]`` without padding, where it can be told: a layer may get ``[B, L, I]`` or ``[B·L, I]``."""
    if mask is None:
        return x.flatten(0, -2)
    if x.shape[:-1] == mask.shape:
        return x[mask]
    if x.shape[:-1] == (mask.numel(),):
        return x[mask.flatten()]
    return x.flatten(0, -2)
