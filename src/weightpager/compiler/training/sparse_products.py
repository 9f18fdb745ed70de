"""Masked training that skips what masks drop: a step costs what a task's kept blocks cost, not the whole weights."""

from __future__ import annotations

import time
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
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import PagedWeightInfo, Source
from weightpager.compiler.training.device import multiplies_in_bfloat16
from weightpager.compiler.training.logits import logits_with
from weightpager.compiler.training.masks import Masks, drop
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
    """One weight in a task's module: its blocks, and what to do where not a linear layer asks for it."""

    info: PagedWeightInfo
    blocks: KeptBlocks
    kept: Tensor


class SparseProducts:
    """A source's masked products, where they are faster than dense ones under masks."""

    def __init__(self, source: Source, masks: Masks, rounding: Rounds | None) -> None:
        """Work out where each task's blocks are.

        Args:
            source: its weights change in place.
            masks: of its tasks.
            rounding: that products go through.
        """
        self._source, self._masks, self._rounding = source, masks, rounding
        self._sparse = {task: self._of(task) for task in masks.tasks}
        self._whole = {task: self._others(found) for task, found in self._sparse.items()}

    @classmethod
    def of(cls, source: Source, masks: Masks, rounding: Rounds | None) -> SparseProducts | None:
        """None where it isn't faster: it takes a CPU that multiplies pairs of bfloat16, and no GPU."""
        device = next(iter(source.models.values())).device
        faster = device.type == "cpu" and multiplies_in_bfloat16(device) and _skipping_pays()
        return cls(source, masks, rounding) if faster else None

    def logits(self, task: str, batch: Batch) -> Tensor:
        """A task's logits under its masks, as `masked_logits` finds them."""
        weights = self._masks.parameters(self._source, task, self._whole[task], self._rounding)
        with _Skipping(self._sparse[task], self._rounding):
            return logits_with(self._source.models[task], weights, batch, self._source.task_file.tasks[task].kind)

    def _of(self, task: str) -> dict[int, _Sparse]:
        """Sparse weights by the identity of the parameter."""
        sparse = {}
        for info in self._source.paged:
            layer, kept = self._source.linear(task, info.name), self._masks.blocks(task, info)
            if _is_plain(layer) and kept.mean() <= MOST_KEPT:
                sparse[id(layer.weight)] = _Sparse(info, KeptBlocks(kept, info.grid), torch.from_numpy(kept))
        return sparse

    def _others(self, sparse: Mapping[int, _Sparse]) -> list[PagedWeightInfo]:
        """Weights that are multiplied whole."""
        skipped = {of.info.name for of in sparse.values()}
        return [info for info in self._source.paged if info.name not in skipped]


class _Skipping(TorchFunctionMode):
    """Linear layers multiply by kept blocks alone. Whatever else asks for such a weight gets it masked."""

    def __init__(self, sparse: Mapping[int, _Sparse], rounding: Rounds | None) -> None:
        super().__init__()
        self._sparse, self._rounding = sparse, rounding

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is linear and len(args) > 1 and (sparse := self._sparse.get(id(args[1]))):
            bias = args[2] if len(args) > 2 else given.get("bias")
            rounding = None if self._rounding is None else self._rounding.rows(sparse.info.name)
            return sparse.blocks.linear(args[0], args[1], bias, rounding)
        result = func(*args, **given)
        if not isinstance(result, Tensor) or not any(id(one) in self._sparse for one in (*args, *given.values())):
            return result
        return func(*map(self._masked, args), **{name: self._masked(value) for name, value in given.items()})

    def _masked(self, value: Any) -> Any:
        sparse = self._sparse.get(id(value))
        if sparse is None:
            return value
        rounded = value if self._rounding is None else self._rounding(sparse.info.name, value)
        return drop(rounded, sparse.kept, sparse.info.grid)


def _is_plain(layer: nn.Module) -> bool:
    """Whether a layer multiplies by a weight as `KeptBlocks` wants it."""
    if type(layer) is not nn.Linear:
        return False
    return layer.weight.dtype == torch.float32 and layer.weight.is_contiguous()


@cache
def _skipping_pays() -> bool:
    """Whether this CPU goes forward and back through half of a layer's blocks clearly faster than through all of it.

    The instruction set doesn't tell: where torch multiplies in tiles (AMX), dense products are many times as fast.
    """
    if not products() or products()[0] == "generic":
        return False
    grid = BlockGrid(1536, 384, BlockShape(16, 32))
    half = np.random.default_rng(0).random((grid.rows, grid.cols)) < 0.5
    blocks = KeptBlocks(half, grid)
    weight = torch.ones(grid.out_features, grid.in_features, requires_grad=True)
    x = torch.ones(512, grid.in_features, dtype=torch.bfloat16, requires_grad=True)
    trials = [(_seconds(blocks.linear, x, weight), _seconds(_dense, x, weight)) for _ in range(6)][1:]
    sparse, dense = (min(column) for column in zip(*trials, strict=True))
    return bool(sparse < 0.8 * dense)


def _dense(x: Tensor, weight: Tensor) -> Tensor:
    return linear(x, weight.bfloat16())


def _seconds(product: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    start = time.perf_counter()
    product(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start
