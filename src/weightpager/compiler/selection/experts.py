"""Whole experts: where they are, and how many of them a task keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.paged_weights import canonical
from weightpager.compiler.selection.saliency import FloatArray
from weightpager.compiler.training.evaluate import evaluating
from weightpager.compiler.training.loss import masked_logits
from weightpager.compiler.training.masks import Masks
from weightpager.errors import CompileError
from weightpager.nn.experts import Experts, mixtures
from weightpager.progress import StepProgress, silent


@dataclass(frozen=True)
class ExpertLayer:
    """A layer's experts: the module that holds them and their router, and the names of each expert's paged weights.

    Attributes:
        top_k: number of experts that a token goes to.
    """

    name: str
    experts: tuple[tuple[str, ...], ...]
    top_k: int


def expert_layers(source: DenseModel) -> list[ExpertLayer]:
    """The experts of all layers that page them, in the model's order; all tasks have the same ones."""
    model, paged = next(iter(source.models.values())), {info.name for info in source.paged}
    prefix = model.base_model_prefix + "."
    layers = []
    for mixture in mixtures(model):
        numbers = range(len(mixture.experts))
        experts = tuple(tuple(canonical(name, prefix) for name in mixture.weights(number)) for number in numbers)
        if all(name in paged for names in experts for name in names):
            layers.append(ExpertLayer(mixture.name, experts, mixture.router.top_k))
    return layers


def keeps_whole_experts(source: DenseModel) -> bool:
    """Whether tasks keep whole experts, and all of everything else."""
    return source.task_file.experts == "whole" and bool(expert_layers(source))


def experts_kept(source: DenseModel, task: str) -> int:
    """Experts that a task keeps of each layer, so that with all other weights it keeps as many blocks as it may."""
    layers, blocks = expert_layers(source), _BlockCounts.of(source)
    density = 1 - source.task_file.sparsity_of(task)
    kept = math.floor((density * blocks.total - blocks.others) / blocks.per_expert + 1e-9)
    if kept < blocks.top_k:
        most = math.floor(100 * (1 - blocks.least)) / 100
        raise CompileError(
            f"tasks.{task}: a token goes to {blocks.top_k} of {len(layers[0].experts)} experts, and the sparsity "
            f"{source.task_file.sparsity_of(task):g} leaves {max(0, kept)} of each layer; expected at most "
            f"{most:g}, or 'experts: blocks', which cuts all weights into blocks"
        )
    return min(kept, *(len(layer.experts) for layer in layers))


def check_experts(source: DenseModel) -> None:
    """See before anything is trained that every task keeps as many experts as a token goes to."""
    if source.task_file.fits is None and keeps_whole_experts(source):
        for task in source.models:
            experts_kept(source, task)


def check_left(source: DenseModel, masks: Masks) -> None:
    """See that tasks whose experts were cut into blocks keep something of as many as a token goes to."""
    for task in source.models:
        routes = masks.routes(source, task)
        for layer in expert_layers(source):
            left = int(routes[f"{layer.name}.gate.kept"].sum())
            if left < layer.top_k:
                raise CompileError(
                    f"tasks.{task}: {layer.name} keeps blocks of {left} of {len(layer.experts)} experts, and a token "
                    f"goes to {layer.top_k}; lower its sparsity, or keep whole experts ('experts: whole')"
                )


def least_density(source: DenseModel) -> float:
    """The share of the blocks that a task keeps at least where whole experts are kept; 0 where they aren't."""
    return _BlockCounts.of(source).least if keeps_whole_experts(source) else 0.0


@dataclass(frozen=True)
class _BlockCounts:
    """Numbers of blocks of a model's paged weights; ``others`` lie outside experts.

    Attributes:
        per_expert: those of one expert of each layer.
        top_k: number of experts of a layer that a token goes to.
    """

    total: int
    others: int
    per_expert: int
    top_k: int

    @classmethod
    def of(cls, source: DenseModel) -> _BlockCounts:
        counts, layers = {info.name: info.grid.count for info in source.paged}, expert_layers(source)
        inside = [sum(counts[name] for names in layer.experts for name in names) for layer in layers]
        per_expert = sum(sum(counts[name] for name in layer.experts[0]) for layer in layers)
        total = sum(counts.values())
        return cls(total, total - sum(inside), per_expert, max(layer.top_k for layer in layers))

    @property
    def least(self) -> float:
        """Density that leaves a token's experts."""
        return (self.others + self.top_k * self.per_expert) / self.total


def expert_saliency(
    source: DenseModel, task: str, batches: Sequence[Batch], progress: StepProgress = silent
) -> dict[str, FloatArray]:
    """Saliency of the blocks of every paged weight where whole experts are kept; other weights' is 1.

    An expert's is the sum of the norms of what it adds to a task's tokens, its answers times the router's weights. One
    that none of them reaches has 0. It is spread over the expert's blocks, and compared within a layer.
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
