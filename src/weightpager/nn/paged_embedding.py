"""Embeddings whose tables are stored as int8 rows: in pages that come on demand, or whole on a device."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from weightpager.kernels.torch.arrays import as_array
from weightpager.kernels.torch.tables import widened
from weightpager.nn.custom_op_embedding import CustomOpEmbedding


class RowSource(Protocol):
    """What looks a table's rows up."""

    def look_up(self, ids: npt.NDArray[np.int64], out: npt.NDArray[Any]) -> None:
        """Write the rows ``ids`` [n] to ``out`` [n, columns], float32, or bfloat16 as uint16.

        Raises:
            IndexError: a row isn't in the table.
        """

    def all(self) -> npt.NDArray[np.float32]:
        """The whole table, float32 [rows, columns]."""


class PagedEmbedding(CustomOpEmbedding):
    """`torch.nn.Embedding` whose rows come from pages when a batch wants them; on the host.

    All that a batch lacks is read at once, before anything is computed with it. Models that read ``weight`` past the
    lookup get a wide copy of the whole table, read from storage each time.

    Args:
        source: of the rows.
        num_embeddings, embedding_dim, dtype, padding_idx: see `CustomOpEmbedding`.
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
        """The table as the model would have it."""
        return torch.from_numpy(self.source.all()).to(self.wide.dtype)

    def compute(self, ids: Tensor) -> Tensor:
        """The rows.

        Raises:
            IndexError: a row isn't in the table.
            StoreError, PageCorruptError: a row can't be read, or isn't what it should be.
        """
        if ids.dtype not in (torch.int64, torch.int32):  # as torch does
            raise TypeError(f"expected ids to be int64 or int32, got {ids.dtype}")
        out = torch.empty((*ids.shape, self.embedding_dim), dtype=self.wide.dtype, device="cpu")
        flat = ids.detach().reshape(-1).to(torch.int64).numpy()
        self.source.look_up(np.ascontiguousarray(flat), as_array(out.view(-1, self.embedding_dim)))
        return out

    def extra_repr(self) -> str:
        """As `torch.nn.Embedding` prints itself, with both dtypes."""
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
        """The table as the model would have it."""
        return self(torch.arange(self.num_embeddings, device=self.stored.device))  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` of int64 or int32 to ``[..., embedding_dim]``.

        Raises:
            IndexError: a row isn't in the table; on a GPU its assertion fails instead.
        """
        return widened(embedding(ids, self.stored), self.wide.dtype)  # an index would count ids below 0 from the end
