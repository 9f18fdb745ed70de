"""Layers over a weight that is whole in memory, in blocks of few bits: a linear layer, and an embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.kernels.torch import Weight, reference
from weightpager.kernels.torch.tables import look_up
from weightpager.nn.custom_op_embedding import CustomOpEmbedding
from weightpager.nn.paged_linear import PagedLinear


class WholeEmbedding(CustomOpEmbedding):
    """`torch.nn.Embedding` whose rows are gathered from blocks and widened.

    Models that read ``weight`` past the lookup get a wide copy of the whole table.

    Args:
        table: as `whole_weight` makes it.
        dtype, padding_idx: see `CustomOpEmbedding`.
    """

    def __init__(self, table: Weight, dtype: torch.dtype, padding_idx: int | None = None) -> None:
        super().__init__(table.out_features, table.in_features, dtype, padding_idx)
        self.table = table

    @property
    def weight(self) -> Tensor:
        """The table as the model would have it."""
        return reference.dense_weight(self.table).to(self.wide.dtype)

    def compute(self, ids: Tensor) -> Tensor:
        """The rows.

        Raises:
            IndexError: a row isn't in the table.
        """
        return look_up(self.table, ids, self.wide.dtype)

    def extra_repr(self) -> str:
        """As `torch.nn.Embedding` prints itself, with both dtypes."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.table.dtype} to {self.wide.dtype}"


class WholeLinear(PagedLinear):
    """`torch.nn.Linear` over a weight whose blocks are all there, and always.

    Args:
        table: as `whole_weight` makes it.
        bias: [rows] or None.
        dtype: that the model computes in.
    """

    wide: Tensor

    def __init__(self, table: Weight, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(table, bias, 0, _Open())
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        """The table as the model would have it, for those that look at it past the product."""
        return reference.dense_weight(self.paged_weight).to(self.wide.dtype)


class _Open:
    """The gate of what never leaves memory."""

    def enter(self, reader: object, layer: int) -> None:
        """Nothing to wait for."""

    def note_read(self) -> None:
        """Nothing to tell."""

    def leave(self, reader: object, /) -> None:
        """Nothing to tell."""
