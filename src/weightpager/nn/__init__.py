"""Torch modules over paged weights."""

from weightpager.nn.paged_linear import PagedLinear, PageGate
from weightpager.nn.skeleton import EmptyOnMeta, check_complete

__all__ = ["EmptyOnMeta", "PageGate", "PagedLinear", "check_complete"]
