"""Products of a task that trains parts of its own beside values that stay: only what is learnt costs a gradient."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn
from torch.nn.functional import linear

from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.recovery.low_rank import LowRankParameters
from weightpager.compiler.recovery.rounding import Rounding, stored_if_coarse
from weightpager.compiler.training.linear_products import Multiplying, Product, is_plain
from weightpager.compiler.training.logits import logits_with
from weightpager.compiler.training.masks import Masks, drop, module_name
from weightpager.compiler.training.sparse_products import MOST_KEPT
from weightpager.kernels.torch.kept_blocks import FrozenBlocks, KeptBlocks, products


@dataclass(frozen=True)
class _Skipped:
    """How to multiply by the blocks that a task keeps: those that stay, and those that it learns, if there are any."""

    frozen: FrozenBlocks
    learnt: KeptBlocks | None


@dataclass(frozen=True)
class _Weight:
    """A paged weight, while a task learns a part of it.

    Attributes:
        info: which.
        frozen: [out_features, in_features], what the task keeps and doesn't move; zero elsewhere.
        free: [grid rows, grid cols], blocks that it moves.
        skipped: how to multiply by kept blocks alone; None where whole weights are faster.
    """

    info: PagedWeightInfo
    frozen: Tensor
    free: Tensor
    skipped: _Skipped | None

    @classmethod
    def of(
        cls, source: DenseModel, masks: Masks, task: str, info: PagedWeightInfo, free: Tensor, *, skips: bool
    ) -> _Weight:
        """The weight as it stands in a task's module; as its pages will hold it, where these round coarsely."""
        layer, kept = source.linear(task, info.name), masks.blocks(task, info)
        values = stored_if_coarse(layer.weight.detach(), info.grid, source.task_file.dtype)
        frozen, skipped = drop(masks.masked(task, info, values), ~free, info.grid), None
        if skips and is_plain(layer) and kept.mean() <= MOST_KEPT:
            moving = free.numpy()
            staying = FrozenBlocks(KeptBlocks(kept & ~moving, info.grid), frozen)
            skipped = _Skipped(staying, KeptBlocks(moving, info.grid) if moving.any() else None)
        return cls(info, frozen, free, skipped)


@dataclass(frozen=True)
class _OwnProduct:
    """A product in one step, with values that the next one changes."""

    of: _Weight
    own: nn.Parameter | None
    rounding: Rounding | None
    added: LowRankParameters

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.added.added_to(self.of.info.name, self._kept(x, bias), x)

    def weight(self) -> Tensor:
        return self.added.added(self.of.info.name, self._whole)

    def _kept(self, x: Tensor, bias: Tensor | None) -> Tensor:
        skipped = self.of.skipped
        if skipped is None:
            return linear(x, self._whole, bias)
        y = skipped.frozen.linear(x, bias)
        if skipped.learnt is None or self.own is None:
            return y
        rows = None if self.rounding is None else self.rounding.rows(self.of.info.name)
        return y + skipped.learnt.linear(x, self.own, None, rows)

    @cached_property
    def _whole(self) -> Tensor:
        """[out_features, in_features], without what is added; layers may share it."""
        if self.own is None:
            return self.of.frozen
        name, grid = self.of.info.name, self.of.info.grid
        moving = self.own if self.rounding is None else self.rounding(name, self.own)
        return self.of.frozen + drop(moving, self.of.free, grid)


class OwnProducts:
    """One task's logits while it learns blocks and low-rank parts of its own."""

    def __init__(
        self,
        source: DenseModel,
        masks: Masks,
        task: str,
        free: Mapping[str, Tensor],
        own: Mapping[str, nn.Parameter],
        added: LowRankParameters,
        rounding: Rounding | None,
        *,
        skips: bool,
    ) -> None:
        """State what moves.

        Args:
            source: the values that stay.
            masks: that its tasks compute under.
            task: who learns.
            free: paged weight → [grid rows, grid cols], blocks that the task moves.
            own: paged weight → float32 [out_features, in_features], the values of these; of weights that have some.
            added: low-rank parts.
            rounding: of ``own``.
            skips: whether to multiply by kept blocks alone, as `skipping_pays` says of the process that was started.
        """
        self._source, self._task, self._own, self._added, self._rounding = source, task, own, added, rounding
        self._routes = masks.routes(source, task)
        skips = skips and bool(products())  # a worker may lack the native module
        self._weights = [_Weight.of(source, masks, task, info, free[info.name], skips=skips) for info in source.paged]

    def logits(self, batch: Batch) -> Tensor:
        """The task's logits, as `logits_with` finds them."""
        model, kind = self._source.models[self._task], self._source.task_file.tasks[self._task].kind
        found: dict[int, Product] = {}
        replaced = dict(self._routes)
        for of in self._weights:
            layer = self._source.linear(self._task, of.info.name)
            product = _OwnProduct(of, self._own.get(of.info.name), self._rounding, self._added)
            if is_plain(layer):
                found[id(layer.weight)] = product
            else:
                replaced[module_name(of.info, model.base_model_prefix)] = product.weight()
        with Multiplying(found):
            return logits_with(model, replaced, batch, kind)
