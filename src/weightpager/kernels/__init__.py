"""Tensors in, tensors out: the linear layer of a weight that lies in pages of an arena."""

from weightpager.kernels.dispatch import available, calls, isa, paged_gated, paged_linear, threading
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError

__all__ = [
    "PageNotResidentError",
    "PagedWeight",
    "available",
    "calls",
    "isa",
    "paged_gated",
    "paged_linear",
    "threading",
]
