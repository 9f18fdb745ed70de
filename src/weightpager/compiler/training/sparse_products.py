"""Masked training that skips what masks drop: a step costs what a task's kept blocks cost, not the whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.training.device import multiplies_in_bfloat16
from weightpager.compiler.training.linear_products import Multiplying, is_plain
from weightpager.compiler.training.logits import logits_with
from weightpager.compiler.training.masks import Masks, drop
from weightpager.compiler.training.trial import least_seconds
from weightpager.kernels.torch.kept_blocks import KeptBlocks, RowRounding, products

MOST_KEPT = 0.75
"""Share of a weight's blocks up to which skipping the others is faster."""


class Rounds(Protocol):
    """What weights are rounded by on their way into a product."""

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """A paged weight as its pages will hold it."""

    def rows(self, name: str) -> RowRounding:
        """How its blocks' rows are rounded to that."""


@dataclass(frozen=True)
class _Sparse:
    """The product with a task's blocks of one weight."""

    info: PagedWeightInfo
    values: Tensor
    kept: Tensor
    blocks: KeptBlocks
    rounding: Rounds | None

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rounding = None if self.rounding is None else self.rounding.rows(self.info.name)
        return self.blocks.linear(x, self.values, bias, rounding)

    def weight(self) -> Tensor:
        rounded = self.values if self.rounding is None else self.rounding(self.info.name, self.values)
        return drop(rounded, self.kept, self.info.grid)


class SparseProducts:
    """A source's masked products, where they are faster than dense ones under masks."""

    def __init__(self, source: DenseModel, masks: Masks, rounding: Rounds | None) -> None:
        """Work out where each task's blocks are.

        Args:
            source: its weights change in place.
            masks: of its tasks.
            rounding: that products go through.
        """
        self._source, self._masks, self._rounding = source, masks, rounding
        self._sparse = {task: self._of(task) for task in source.models}
        self._whole = {task: self._others(found) for task, found in self._sparse.items()}

    @classmethod
    def of(cls, source: DenseModel, masks: Masks, rounding: Rounds | None) -> SparseProducts | None:
        """None where whole weights are faster."""
        return cls(source, masks, rounding) if skipping_pays(source) else None

    def logits(self, task: str, batch: Batch) -> Tensor:
        """A task's logits under its masks, as `masked_logits` finds them."""
        weights = self._masks.parameters(self._source, task, self._whole[task], self._rounding)
        with Multiplying(self._sparse[task]):
            return logits_with(self._source.models[task], weights, batch, self._source.task_file.tasks[task].kind)

    def _of(self, task: str) -> dict[int, _Sparse]:
        """Sparse weights by the identity of the parameter."""
        sparse = {}
        for info in self._source.paged:
            layer, kept = self._source.linear(task, info.name), self._masks.blocks(task, info)
            if is_plain(layer) and kept.mean() <= MOST_KEPT:
                blocks = KeptBlocks(kept, info.grid)
                sparse[id(layer.weight)] = _Sparse(info, layer.weight, torch.from_numpy(kept), blocks, self._rounding)
        return sparse

    def _others(self, sparse: Mapping[int, _Sparse]) -> list[PagedWeightInfo]:
        """Weights that are multiplied whole."""
        skipped = {of.info.name for of in sparse.values()}
        return [info for info in self._source.paged if info.name not in skipped]


def skipping_pays(source: DenseModel) -> bool:
    """Whether to multiply by kept blocks alone: where a trial says that it is faster.

    It rounds weights to bfloat16. So it is for pages that round as much, or for products that are in bfloat16 anyway.
    """
    device, task_file = next(iter(source.models.values())).device, source.task_file
    if device.type != "cpu" or not (multiplies_in_bfloat16(device) or task_file.dtype != "float32"):
        return False
    return _skipping_pays(device, task_file.block)


def _skipping_pays(device: torch.device, block: BlockShape) -> bool:
    """Whether this CPU goes forward and back through half of a layer's blocks clearly faster than through all of it.

    The instruction set doesn't tell: where torch multiplies in tiles (AMX), dense products are many times as fast. A
    step under masks also lays them over whole weights, and rounds all of these, which a trial leaves out.
    """
    if not products() or products()[0] == "generic":
        return False
    return _pays_in(torch.bfloat16 if multiplies_in_bfloat16(device) else torch.float32, block)


@cache
def _pays_in(dtype: torch.dtype, block: BlockShape) -> bool:
    """The same, of activations in this dtype. Small blocks cost more for each weight."""
    grid = BlockGrid(1536, 384, block)
    half = np.random.default_rng(0).random((grid.rows, grid.cols)) < 0.5
    blocks = KeptBlocks(half, grid)
    weight = torch.ones(grid.out_features, grid.in_features, requires_grad=True)
    x = torch.ones(512, grid.in_features, dtype=dtype, requires_grad=True)

    def backward(product: Tensor) -> None:
        product.sum().backward()  # type: ignore[no-untyped-call]

    sparse, dense = least_seconds(
        lambda: backward(blocks.linear(x, weight)), lambda: backward(linear(x, weight.to(dtype))), times=5
    )
    return sparse < 0.9 * dense
