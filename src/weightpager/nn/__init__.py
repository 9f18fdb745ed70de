"""Torch modules over paged weights."""

from weightpager.nn.paged_linear import PagedLinear, PageGate
from weightpager.nn.skeleton import EmptyOnMeta, missing_values

__all__ = ["EmptyOnMeta", "PageGate", "PagedLinear", "missing_values"]
