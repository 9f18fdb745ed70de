"""Torch modules over paged weights."""

from weightpager.nn.flat_linear import FlatLinear
from weightpager.nn.gated_mlp import PagedGatedMLP, fuse_gated_mlps
from weightpager.nn.narrow_embedding import NarrowEmbedding, is_plain_embedding, keep_tables_narrow
from weightpager.nn.paged_linear import PagedLinear, PageGate
from weightpager.nn.skeleton import EmptyOnMeta, missing_values

__all__ = [
    "EmptyOnMeta",
    "FlatLinear",
    "NarrowEmbedding",
    "PageGate",
    "PagedGatedMLP",
    "PagedLinear",
    "fuse_gated_mlps",
    "is_plain_embedding",
    "keep_tables_narrow",
    "missing_values",
]
