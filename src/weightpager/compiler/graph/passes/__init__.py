"""Passes: each a pure function from draft to draft. One whose pattern doesn't match leaves plain operators."""

from __future__ import annotations

from collections.abc import Callable

from weightpager.compiler.graph.builder import Draft
from weightpager.compiler.graph.passes.fuse import fuse_activations, fuse_gated, fuse_gelus, fuse_rms_norms, fuse_sums
from weightpager.compiler.graph.passes.rotary import fuse_partial_rotary, fuse_rotary, fuse_rotary_of_sections
from weightpager.compiler.graph.passes.simplify import (
    fold_constants,
    fold_masks,
    join_moves,
    look_up_equal_ids_once,
    tokens_before_heads,
    without_unused,
)

_PASSES: tuple[Callable[[Draft], Draft], ...] = (
    fold_constants,
    look_up_equal_ids_once,
    fold_masks,
    fuse_gelus,
    fuse_rms_norms,
    fuse_rotary,
    fuse_rotary_of_sections,
    fuse_partial_rotary,
    join_moves,
    without_unused,
    tokens_before_heads,
    join_moves,
    without_unused,
    fuse_gated,
    fuse_activations,
    fuse_sums,
    without_unused,
)


def simplified(draft: Draft) -> Draft:
    """All passes, in order."""
    for each in _PASSES:
        draft = each(draft)
    return draft
