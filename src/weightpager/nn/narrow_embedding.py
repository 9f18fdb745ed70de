"""`NarrowEmbedding`: an embedding whose table has fewer bits than what the model computes in."""

from __future__ import annotations

from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding


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
        """The table as the model would have it."""
        return self.table.to(self.wide.dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` to ``[..., embedding_dim]``."""
        return embedding(ids, self.table).to(self.wide.dtype)

    def extra_repr(self) -> str:
        """As `torch.nn.Embedding` prints itself, with both dtypes."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.table.dtype} to {self.wide.dtype}"


def is_plain_embedding(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Whether a module looks rows up and does nothing else; a subclass may compute something."""
    return type(module) is nn.Embedding and module.max_norm is None


def keep_tables_narrow(model: nn.Module, dtype: torch.dtype) -> int:
    """Replace, in place, plain embeddings whose weights have fewer bits than ``dtype``; how many there were.

    Args:
        model: whose weights are assigned.
        dtype: that it computes in.
    """
    narrow = [
        (name, module.weight.detach())
        for name, module in model.named_modules()
        if is_plain_embedding(module) and module.weight.dtype.itemsize < dtype.itemsize
    ]
    for name, table in narrow:
        model.set_submodule(name, NarrowEmbedding(table, dtype))
    return len(narrow)
