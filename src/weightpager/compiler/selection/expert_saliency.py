"""How much each whole expert matters to a task."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.selection.experts import ExpertLayer, expert_layers
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.logits import masked_logits
from weightpager.errors import CompileError
from weightpager.nn import Experts
from weightpager.progress import StepProgress, silent


def expert_saliency(
    source: DenseModel, task: str, batches: Sequence[Batch], progress: StepProgress = silent
) -> dict[str, FloatArray]:
    """Saliency of the blocks of every paged weight where whole experts are kept; other weights' is 1.

    An expert's is the sum of the norms of what it adds to a task's tokens, its answers times the router's weights. One
    that none of them reaches has 0. It is spread over the expert's blocks, and compared within a layer.

    Raises:
        CompileError: it isn't finite.
    """
    model, layers = source.models[task], expert_layers(source)
    sums = {layer.name: torch.zeros(len(layer.experts)) for layer in layers}
    real: list[Tensor] = []  # bool [tokens] of the batch, False at padding

    def watch(name: str, experts: Experts, given: tuple[Tensor, ...]) -> None:
        for number, tokens, answer in experts.answers(*given):
            norms = answer.float().norm(dim=-1)
            sums[name][number] += norms[real[0][tokens]].sum() if real else norms.sum()

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for layer in layers:
            experts = model.get_submodule(f"{layer.name}.experts")
            hooks.callback(experts.register_forward_pre_hook(partial(watch, layer.name)).remove)
        for done, batch in enumerate(batches, 1):
            real[:] = [] if batch.tokens is None else [batch.tokens.flatten()]
            masked_logits(source, None, task, batch)
            progress(done, len(batches))
    return _spread(source, task, layers, sums)


def _spread(
    source: DenseModel, task: str, layers: Sequence[ExpertLayer], sums: dict[str, Tensor]
) -> dict[str, FloatArray]:
    saliency = {info.name: np.ones(info.grid.count) for info in source.paged}
    for layer in layers:
        if not torch.isfinite(sums[layer.name]).all():
            raise CompileError(f"tasks.{task}: calibration of {layer.name!r} gave NaN or infinity")
        for names, value in zip(layer.experts, sums[layer.name].tolist(), strict=True):
            blocks = sum(len(saliency[name]) for name in names)
            for name in names:
                saliency[name][:] = value / blocks
    return saliency
