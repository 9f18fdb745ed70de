"""An embedding and the head that is tied to it, over one table that lies in blocks of few bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from weightpager.kernels import PagedWeight, reference
from weightpager.kernels.whole_weight import look_up
from weightpager.nn import graph_op
from weightpager.nn.paged_linear import PagedLinear


class TiedEmbedding(nn.Module):
    """`torch.nn.Embedding` whose rows are gathered from blocks and widened. Inference only.

    `torch.compile` and `torch.export` see one operation, ``weightpager::paged_embedding``. Models that read ``weight``
    past the lookup get a wide copy of the whole table.

    Args:
        table: as `whole_weight` makes it.
        dtype: of what is looked up. ``module.to(dtype)`` changes it.
        padding_idx: as that of `torch.nn.Embedding`; tells nothing but that.
    """

    wide: Tensor

    def __init__(self, table: PagedWeight, dtype: torch.dtype, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.out_features, table.in_features
        self.padding_idx = padding_idx
        self.table = table
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)
        self._number = graph_op.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy is another layer."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = graph_op.register(self)

    @property
    def weight(self) -> Tensor:
        """The table as the model would have it."""
        return reference.dense_weight(self.table).to(self.wide.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` of whole numbers to ``[..., embedding_dim]``.

        Raises:
            IndexError: a row isn't in the table.
        """
        if graph_op.is_wanted():
            found: Tensor = graph_op.paged_embedding(ids, self._number, self.embedding_dim, self.wide.dtype)
            return found
        return self.compute(ids)

    def compute(self, ids: Tensor) -> Tensor:
        """The rows."""
        return look_up(self.table, ids, self.wide.dtype)

    def extra_repr(self) -> str:
        """As `torch.nn.Embedding` prints itself, with both dtypes."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.table.dtype} to {self.wide.dtype}"


class TiedHead(PagedLinear):
    """The head: a `PagedLinear` whose blocks are all there, and always.

    Args:
        table: as `whole_weight` makes it.
        bias: [rows] or None.
        dtype: that the model computes in.
    """

    wide: Tensor

    def __init__(self, table: PagedWeight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(table, bias, 0, _Open())
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The table as the model would have it, for those that look at it past the product."""
        return reference.dense_weight(self.paged_weight).to(self.wide.dtype)


class _Open:
    """The gate of what never leaves memory."""

    def enter(self, layer: int) -> None:
        """Nothing to wait for."""

    def leave(self, layer: int) -> None:
        """Nothing to tell."""
