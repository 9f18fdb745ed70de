"""Embedding tables: paged with rows on demand, narrow, or whole in int8."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from weightpager.kernels.rows import RowSource
from weightpager.kernels.torch import Weight, reference
from weightpager.kernels.torch.device_weight import as_array
from weightpager.kernels.torch.tables import look_up, widened
from weightpager.nn.custom_op import CustomOpEmbedding
from weightpager.nn.linear import PagedLinear


class PagedEmbedding(CustomOpEmbedding):
    """`torch.nn.Embedding` whose rows come from pages when a batch wants them; on the host.

    All that a batch lacks is read at once, before anything is computed with it. Models that read ``weight`` past the
    lookup get a wide copy of the whole table, read from storage each time.
    """

    def __init__(
        self,
        source: RowSource,
        num_embeddings: int,
        embedding_dim: int,
        dtype: torch.dtype,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, dtype, padding_idx)
        self.source = source

    @property
    def weight(self) -> Tensor:
        return torch.from_numpy(self.source.all()).to(self.wide.dtype)

    def compute(self, ids: Tensor) -> Tensor:
        """The rows. Raises `IndexError` of a row that isn't there, and what its source raises."""
        if ids.dtype not in (torch.int64, torch.int32):  # as torch does
            raise TypeError(f"expected ids to be int64 or int32, got {ids.dtype}")
        out = torch.empty((*ids.shape, self.embedding_dim), dtype=self.wide.dtype, device="cpu")
        flat = ids.detach().reshape(-1).to(torch.int64).numpy()
        self.source.look_up(np.ascontiguousarray(flat), as_array(out.view(-1, self.embedding_dim)))
        return out

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, int8 in pages to {self.wide.dtype}"


class Int8Embedding(nn.Module):
    """`torch.nn.Embedding` whose whole table is int8 rows on a device; gives what `PagedEmbedding` does.

    Args:
        stored: uint8 [num_embeddings, embedding_dim + 2]: a row's numbers, int8, and its scale, a bfloat16.
        dtype: of what is looked up. ``module.to(dtype)`` changes it.
        padding_idx: as that of `torch.nn.Embedding`.
    """

    stored: Tensor
    wide: Tensor

    def __init__(self, stored: Tensor, dtype: torch.dtype, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = stored.shape[0], stored.shape[1] - 2
        self.padding_idx = padding_idx
        self.register_buffer("stored", stored, persistent=False)
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self(torch.arange(self.num_embeddings, device=self.stored.device))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` of int64 or int32 to ``[..., embedding_dim]``. Raises `IndexError`; on a GPU an assertion fails."""
        return widened(embedding(ids, self.stored), self.wide.dtype)  # an index would count ids below 0 from the end


class NarrowEmbedding(nn.Module):
    """`torch.nn.Embedding` whose rows are widened when they are looked up.

    The table is a buffer, since transformers takes the dtype of a model's first parameter for that of its activations.
    Models that read ``weight`` past the lookup get a wide copy of the whole table.

    Args:
        table: [num_embeddings, embedding_dim].
        dtype: of what is looked up. ``module.to(dtype)`` changes both.
    """

    table: Tensor
    wide: Tensor

    def __init__(self, table: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.shape
        self.register_buffer("table", table)
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def weight(self) -> Tensor:
        return self.table.to(self.wide.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return embedding(ids, self.table).to(self.wide.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.table.dtype} to {self.wide.dtype}"


def is_plain_embedding(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether a module looks rows up and does nothing else; a subclass may compute something."""
    return type(module) is nn.Embedding and module.max_norm is None


def keep_tables_narrow(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace, in place, plain embeddings whose weights have fewer bits than ``dtype``; how many there were."""
    narrow = [
        (name, module.weight.detach())
        for name, module in model.named_modules()
        if is_plain_embedding(module) and module.weight.dtype.itemsize < dtype.itemsize
    ]
    for name, table in narrow:
        model.set_submodule(name, NarrowEmbedding(table, dtype))
    return len(narrow)


class WholeEmbedding(CustomOpEmbedding):
    """`torch.nn.Embedding` whose rows are gathered from blocks and widened.

    Models that read ``weight`` past the lookup get a wide copy of the whole table.
    """

    def __init__(self, table: Weight, dtype: torch.dtype, padding_idx: int | None = None) -> None:
        super().__init__(table.out_features, table.in_features, dtype, padding_idx)
        self.table = table

    @property
    def weight(self) -> Tensor:
        return reference.dense_weight(self.table).to(self.wide.dtype)

    def compute(self, ids: Tensor) -> Tensor:
        """The rows. Raises `IndexError` if one isn't in the table."""
        return look_up(self.table, ids, self.wide.dtype)

    def extra_repr(self) -> str:
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

    def enter(self, reader: object, layer: int) -> None: ...

    def note_read(self) -> None: ...

    def leave(self, reader: object, /) -> None: ...
