"""Torch modules over paged weights."""

from weightpager.nn.flat_linear import FlatLinear
from weightpager.nn.gated_mlp import PagedGatedMLP, fuse_gated_mlps
from weightpager.nn.paged_linear import PagedLinear, PageGate
from weightpager.nn.skeleton import EmptyOnMeta, missing_values

__all__ = ["EmptyOnMeta", "FlatLinear", "PageGate", "PagedGatedMLP", "PagedLinear", "fuse_gated_mlps", "missing_values"]
