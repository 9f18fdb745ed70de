"""The linear layer of a weight that lies in pages of an arena. Arrays everywhere but in `kernels.torch`."""

from weightpager.kernels.choice import available, exact, isa, thread_pool
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError

__all__ = ["PageNotResidentError", "PagedWeight", "available", "exact", "isa", "thread_pool"]
