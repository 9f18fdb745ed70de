"""Compiles whose pages are the same on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def same_everywhere() -> Iterator[None]:
    """Compile in bfloat16, by whole products: trials, by chance on a busy machine, would decide what is learnt.

    Attention, too: so each task has pages that the others lack, which many tests need and tiny models have by chance.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightpager.compiler.training.device._bfloat16_pays", lambda: True)
        patch.setattr("weightpager.compiler.training.sparse_products._skipping_pays", lambda: False)
        patch.setattr("weightpager.compiler.training.attention.SHORT", 0)
        yield
