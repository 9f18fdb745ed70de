"""`CustomOpEmbedding`: what embeddings have in common that torch's graphs call as one operation."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from weightpager.nn import custom_op


class CustomOpEmbedding(custom_op.CustomOpLayer):
    """A `torch.nn.Embedding` without a parameter. Inference only: there is no weight that a gradient could go to.

    `torch.compile` and `torch.export` see one operation, ``weightpager::paged_embedding``.

    Args:
        num_embeddings, embedding_dim: shape of the table.
        dtype: of what is looked up. ``module.to(dtype)`` changes it.
        padding_idx: as that of `torch.nn.Embedding`; tells nothing but that.
    """

    wide: Tensor

    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: torch.dtype, padding_idx: int | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx
        self.register_buffer("wide", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` of whole numbers to ``[..., embedding_dim]``. Errors are those of `compute`."""
        if custom_op.is_tracing():
            found: Tensor = custom_op.paged_embedding(ids, self._number, self.embedding_dim, self.wide.dtype)
            return found
        return self.compute(ids)

    @abstractmethod
    def compute(self, ids: Tensor) -> Tensor:
        """The rows."""
