"""Torch modules over paged weights."""

from weightpager.nn.experts import ExpertRouter, Experts, Mixture, mixtures
from weightpager.nn.flat_linear import FlatLinear
from weightpager.nn.gated_mlp import PagedGatedMLP, fuse_gated_mlps
from weightpager.nn.linear_layer import is_linear, set_as_published, set_upright
from weightpager.nn.narrow_embedding import NarrowEmbedding, is_plain_embedding, keep_tables_narrow
from weightpager.nn.paged_embedding import Int8Embedding, PagedEmbedding, RowSource
from weightpager.nn.paged_linear import PagedLinear, PageGate
from weightpager.nn.skeleton import calls_for, empty_on_meta, missing_values
from weightpager.nn.whole_weight import WholeEmbedding, WholeLinear

__all__ = [
    "ExpertRouter",
    "Experts",
    "FlatLinear",
    "Int8Embedding",
    "Mixture",
    "NarrowEmbedding",
    "PageGate",
    "PagedEmbedding",
    "PagedGatedMLP",
    "PagedLinear",
    "RowSource",
    "WholeEmbedding",
    "WholeLinear",
    "calls_for",
    "empty_on_meta",
    "fuse_gated_mlps",
    "is_linear",
    "is_plain_embedding",
    "keep_tables_narrow",
    "missing_values",
    "mixtures",
    "set_as_published",
    "set_upright",
]
