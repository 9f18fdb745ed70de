"""Torch modules over paged weights."""

from weightpager.nn.embedding import (
    Int8Embedding,
    NarrowEmbedding,
    PagedEmbedding,
    WholeEmbedding,
    WholeLinear,
    is_plain_embedding,
    keep_tables_narrow,
)
from weightpager.nn.experts import (
    ExpertRouter,
    Experts,
    Mixture,
    PagedGatedMLP,
    fuse_gated_mlps,
    is_linear,
    mixtures,
    set_as_published,
    set_upright,
)
from weightpager.nn.linear import FlatLinear, PagedLinear
from weightpager.nn.skeleton import calls_for, empty_on_meta, missing_values

__all__ = [
    "ExpertRouter",
    "Experts",
    "FlatLinear",
    "Int8Embedding",
    "Mixture",
    "NarrowEmbedding",
    "PagedEmbedding",
    "PagedGatedMLP",
    "PagedLinear",
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
