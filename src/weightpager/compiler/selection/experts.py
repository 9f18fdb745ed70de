"""Whole experts: where they are, and how many of them a task keeps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.named_parameters import canonical
from weightpager.compiler.training.masks import Masks
from weightpager.errors import CompileError
from weightpager.nn import mixtures


@dataclass(frozen=True)
class Layer:
    """A layer's experts.

    Attributes:
        name: of the module that they and their router are in, as the model calls it.
        experts: the paged weights of each.
        a_token: experts that a token goes to.
    """

    name: str
    experts: tuple[tuple[str, ...], ...]
    a_token: int


def expert_layers(source: Source) -> list[Layer]:
    """The experts of all layers that page them, in the model's order; all tasks have the same ones."""
    model, paged = next(iter(source.models.values())), {info.name for info in source.paged}
    prefix = model.base_model_prefix + "."
    layers = []
    for mixture in mixtures(model):
        numbers = range(len(mixture.experts))
        experts = tuple(tuple(canonical(name, prefix) for name in mixture.weights(number)) for number in numbers)
        if all(name in paged for names in experts for name in names):
            layers.append(Layer(mixture.name, experts, mixture.router.top_k))
    return layers


def keeps_whole(source: Source) -> bool:
    """Whether tasks keep whole experts, and all of everything else."""
    return source.task_file.experts == "whole" and bool(expert_layers(source))


def experts_kept(source: Source, task: str) -> int:
    """Experts that a task keeps of each layer, so that with all other weights it keeps as many blocks as it may.

    Raises:
        CompileError: fewer than a token goes to.
    """
    layers, blocks = expert_layers(source), _Blocks.of(source)
    density = 1 - source.task_file.sparsity_of(task)
    kept = math.floor((density * blocks.all - blocks.others) / blocks.one_each + 1e-9)
    if kept < blocks.a_token:
        most = math.floor(100 * (1 - blocks.least)) / 100
        raise CompileError(
            f"tasks.{task}: a token goes to {blocks.a_token} of {len(layers[0].experts)} experts, and the sparsity "
            f"{source.task_file.sparsity_of(task):g} leaves {max(0, kept)} of each layer; expected at most "
            f"{most:g}, or 'experts: blocks', which cuts all weights into blocks"
        )
    return min(kept, *(len(layer.experts) for layer in layers))


def check_experts(source: Source) -> None:
    """See before anything is trained that every task keeps as many experts as a token goes to.

    Raises:
        CompileError: as `experts_kept`.
    """
    if source.task_file.fit is None and keeps_whole(source):
        for task in source.models:
            experts_kept(source, task)


def check_left(source: Source, masks: Masks) -> None:
    """See that tasks whose experts were cut into blocks keep something of as many as a token goes to.

    Raises:
        CompileError: one doesn't.
    """
    for task in source.models:
        routes = masks.routes(source, task)
        for layer in expert_layers(source):
            left = int(routes[f"{layer.name}.gate.kept"].sum())
            if left < layer.a_token:
                raise CompileError(
                    f"tasks.{task}: {layer.name} keeps blocks of {left} of {len(layer.experts)} experts, and a token "
                    f"goes to {layer.a_token}; lower its sparsity, or keep whole experts ('experts: whole')"
                )


def least_density(source: Source) -> float:
    """The share of the blocks that a task keeps at least where whole experts are kept; 0 where they aren't."""
    return _Blocks.of(source).least if keeps_whole(source) else 0.0


@dataclass(frozen=True)
class _Blocks:
    """Blocks of a source's paged weights.

    Attributes:
        all: of them.
        others: of weights outside experts.
        one_each: of one expert of each layer.
        a_token: experts of a layer that a token goes to.
    """

    all: int
    others: int
    one_each: int
    a_token: int

    @classmethod
    def of(cls, source: Source) -> _Blocks:
        counts, layers = {info.name: info.grid.count for info in source.paged}, expert_layers(source)
        inside = [sum(counts[name] for names in layer.experts for name in names) for layer in layers]
        one_each = sum(sum(counts[name] for name in layer.experts[0]) for layer in layers)
        total = sum(counts.values())
        return cls(total, total - sum(inside), one_each, max(layer.a_token for layer in layers))

    @property
    def least(self) -> float:
        """Density that leaves a token's experts."""
        return (self.others + self.a_token * self.one_each) / self.all
