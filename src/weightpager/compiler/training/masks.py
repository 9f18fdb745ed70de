"""Keep masks laid over dense weights: how a sparse task computes while it is still a dense model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from blake3 import blake3
from torch import Tensor

from weightpager.backends.torch.architecture import BASE
from weightpager.blocks import BlockGrid
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.half_layers import dropped_halves
from weightpager.compiler.model.paged_weights import canonical
from weightpager.nn.experts import mixtures

Keep = Mapping[str, npt.NDArray[np.bool_]]
"""Paged weight → keep masks [blocks of the grid, tasks]."""

Rounded = Callable[[str, Tensor], Tensor]
"""(paged weight, its values ``[out_features, in_features]``) → the same as its pages will hold them."""


@dataclass(frozen=True)
class Masks:
    """Every task's keep masks.

    Attributes:
        tasks: names of the tasks, in the order of the masks' columns.
        keep: True where a task keeps a block, [blocks of the grid, tasks] by paged weight.
    """

    tasks: tuple[str, ...]
    keep: Keep

    def digest(self) -> bytes:
        """A hash of who keeps what."""
        digest = blake3(repr(self.tasks).encode())
        for name, keep in sorted(self.keep.items()):
            digest.update(f"{name} {keep.shape}\n".encode() + keep.tobytes())
        return digest.digest()

    def blocks(self, task: str, info: PagedWeightInfo) -> npt.NDArray[np.bool_]:
        """A task's mask of one weight, [grid rows, grid cols]."""
        kept = self.keep[info.name][:, self.tasks.index(task)]
        return kept.reshape(info.grid.rows, info.grid.cols)

    def masked(self, task: str, info: PagedWeightInfo, weight: Tensor) -> Tensor:
        """``weight [out_features, in_features]`` with the dropped blocks zero; differentiable in ``weight``."""
        return drop(weight, torch.from_numpy(self.blocks(task, info)), info.grid)

    def spread(self, task: str, info: PagedWeightInfo) -> Tensor:
        """A task's mask of one weight by element, float32 [out_features, in_features]."""
        return self.masked(task, info, torch.ones(info.grid.out_features, info.grid.in_features))

    def besides(self, source: DenseModel, task: str) -> dict[str, Tensor]:
        """What else a task's module has under its masks: `routes`, and zeros as the biases of what it drops whole."""
        found, base = self.routes(source, task), source.models[task].base_model_prefix
        for half in dropped_halves(source, self.keep, self.tasks.index(task)):
            for name in half.weights:
                bias = source.linear(task, name).bias
                if bias is not None:
                    found[module_name(name, base, "bias")] = torch.zeros_like(bias, requires_grad=False)
        return found

    def routes(self, source: DenseModel, task: str) -> dict[str, Tensor]:
        """Which experts a task's routers may choose, by the names that this has in the task's module.

        One that has lost all blocks of one of its matrices adds nothing to any token, and isn't chosen.
        """
        model, number = source.models[task], self.tasks.index(task)
        return {
            f"{mixture.name}.gate.kept": torch.tensor(
                [
                    all(self._keeps(canonical(name, model.base_model_prefix + "."), number) for name in of_expert)
                    for of_expert in map(mixture.weights, range(len(mixture.experts)))
                ]
            ).to(mixture.router.kept.device)
            for mixture in mixtures(model)
        }

    def _keeps(self, name: str, number: int) -> bool:
        """Whether a task keeps some block of a linear layer; one that isn't paged keeps all."""
        return name not in self.keep or bool(self.keep[name][:, number].any())

    def parameters(
        self, source: DenseModel, task: str, infos: Iterable[PagedWeightInfo], rounded: Rounded | None = None
    ) -> dict[str, Tensor]:
        """Masked weights by the names that they have in the task's module, for `torch.func.functional_call`.

        They are ``rounded``, if that is given. With them is what is there `besides`.
        """
        base, weights = source.models[task].base_model_prefix, self.besides(source, task)
        for info in infos:
            weight: Tensor = source.linear(task, info.name).weight
            kept = weight if rounded is None else rounded(info.name, weight)
            weights[module_name(info.name, base)] = self.masked(task, info, kept)
        return weights

    @torch.no_grad()
    def held(self, source: DenseModel, task: str, rounded: Rounded | None = None) -> dict[str, Tensor]:
        """`parameters` of all paged weights, without gradients; they lie in the source's scratch."""
        base, weights = source.models[task].base_model_prefix, self.besides(source, task)
        for info in source.paged:
            weight = source.linear(task, info.name).weight
            kept = self.masked(task, info, weight if rounded is None else rounded(info.name, weight))
            weights[module_name(info.name, base)] = source.scratch.hold(kept)
        return weights


def module_name(name: str, base: str, of: str = "weight") -> str:
    """The name of a paged weight's parameter, or its bias, in a task's module whose base is called ``base``."""
    return f"{base}.{name.removeprefix(BASE)}.{of}"


def drop(weight: Tensor, keep: Tensor, grid: BlockGrid) -> Tensor:
    """Zero the blocks of ``weight [out_features, in_features]`` where ``keep [grid rows, grid cols]`` is False."""
    rows, cols = grid.block.rows, grid.block.cols
    keep = keep.to(weight.device)
    if grid.out_features % rows or grid.in_features % cols:
        spread = keep.repeat_interleave(rows, 0).repeat_interleave(cols, 1)
        return weight * spread[: grid.out_features, : grid.in_features]
    cut = weight.view(grid.rows, rows, grid.cols, cols)
    return (cut * keep[:, None, :, None]).view_as(weight)


def block_sums(elements: Tensor, grid: BlockGrid) -> Tensor:
    """The sum over each block of ``elements [out_features, in_features]``: [blocks], row-major."""
    rows, cols = grid.block.rows, grid.block.cols
    below, right = grid.rows * rows - grid.out_features, grid.cols * cols - grid.in_features
    if below or right:
        elements = torch.nn.functional.pad(elements, (0, right, 0, below))
    return elements.view(grid.rows, rows, grid.cols, cols).sum((1, 3)).flatten()
