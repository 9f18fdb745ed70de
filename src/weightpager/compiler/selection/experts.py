"""Whole experts: where they are, and how many of them a task keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.named_parameters import canonical
from weightpager.compiler.training.masks import Masks
from weightpager.errors import CompileError
from weightpager.nn import mixtures


@dataclass(frozen=True)
class ExpertLayer:
    """A layer's experts.

    Attributes:
        name: the name of the module that holds them and their router.
        experts: the names of each expert's paged weights.
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
    """Experts that a task keeps of each layer, so that with all other weights it keeps as many blocks as it may.

    Raises:
        CompileError: fewer than a token goes to.
    """
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
    """See before anything is trained that every task keeps as many experts as a token goes to.

    Raises:
        CompileError: as `experts_kept`.
    """
    if source.task_file.fit is None and keeps_whole_experts(source):
        for task in source.models:
            experts_kept(source, task)


def check_left(source: DenseModel, masks: Masks) -> None:
    """See that tasks whose experts were cut into blocks keep something of as many as a token goes to.

    Raises:
        CompileError: one doesn't.
    """
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
    """Numbers of blocks of a model's paged weights.

    Attributes:
        total: all of them.
        others: those of weights outside experts.
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
