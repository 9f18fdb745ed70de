"""A proof that paged kernels ran while they were measured: which one is chosen proves nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightpager import kernels
from weightpager.kernels.torch import calls


@contextmanager
def paged_kernel_runs() -> Iterator[None]:
    """Assert that the kernel that `kernels.isa` names has run inside."""
    name = kernels.isa()
    before = calls().get(name, 0)
    yield
    assert calls().get(name, 0) > before, f"the paged kernel of {name} must have run"
