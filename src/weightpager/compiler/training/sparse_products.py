"""Masked training that skips what masks drop: a step costs what a task's kept blocks cost, not the whole weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from weightpager.blocks import BlockGrid, BlockShape
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.training.device import least_seconds, multiplies_in_bfloat16
from weightpager.compiler.training.loss import logits_with
from weightpager.compiler.training.masks import Masks, drop
from weightpager.kernels.torch.kept_blocks import LearntBlocks, RowRounding, products

_MANY = (list, tuple)


class Product(Protocol):
    """What a linear layer multiplies by in place of its weight."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's outputs, [..., out_features]."""

    def weight(self) -> Tensor:
        """The same as a weight [out_features, in_features], for whatever asks for that."""


class Multiplying(TorchFunctionMode):
    """Linear layers multiply by products while this is entered; whatever else uses such a weight gets the product's."""

    def __init__(self, products: Mapping[int, Product]) -> None:
        """``products`` are by the `id` of the parameters that they stand for."""
        super().__init__()
        self._products = products

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is linear and len(args) > 1 and (product := self._products.get(id(args[1]))):
            bias = args[2] if len(args) > 2 else given.get("bias")
            return product.linear(args[0].bfloat16() if torch.is_autocast_enabled("cpu") else args[0], bias)
        result = func(*args, **given)
        if not self._uses((*args, *given.values())) or not _has_tensors(result):
            return result
        return func(*self._replaced(args), **{name: self._replaced(value) for name, value in given.items()})

    def _uses(self, value: Any) -> bool:
        """Whether a weight that a product stands for is, or is among, what a function was given."""
        return any(map(self._uses, value)) if type(value) in _MANY else id(value) in self._products

    def _replaced(self, value: Any) -> Any:
        if type(value) in _MANY:
            return type(value)(map(self._replaced, value))
        product = self._products.get(id(value))
        return value if product is None else product.weight()


def _has_tensors(result: Any) -> bool:
    """Whether a function gave something that depends on values, and not a shape or a flag."""
    return any(map(_has_tensors, result)) if type(result) in _MANY else isinstance(result, Tensor)


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer multiplies as a product can do it in its place."""
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.is_contiguous()


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
    blocks: LearntBlocks
    rounding: Rounds | None

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        rounding = None if self.rounding is None else self.rounding.rows(self.info.name)
        return self.blocks.linear(x, self.values, bias, rounding)

    def weight(self) -> Tensor:
        rounded = self.values if self.rounding is None else self.rounding(self.info.name, self.values)
        return drop(rounded, self.kept, self.info.grid)


class SparseProducts:
    """A source's masked products, where they are faster than dense ones under masks; its weights change in place."""

    def __init__(self, source: DenseModel, masks: Masks, rounding: Rounds | None) -> None:
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
                blocks = LearntBlocks(kept, info.grid)
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
    blocks = LearntBlocks(half, grid)
    weight = torch.ones(grid.out_features, grid.in_features, requires_grad=True)
    x = torch.ones(512, grid.in_features, dtype=dtype, requires_grad=True)

    def backward(product: Tensor) -> None:
        product.sum().backward()  # type: ignore[no-untyped-call]

    sparse, dense = least_seconds(
        lambda: backward(blocks.linear(x, weight)), lambda: backward(linear(x, weight.to(dtype))), times=5
    )
    return sparse < 0.9 * dense
