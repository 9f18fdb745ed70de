"""From the values and who keeps what to all that is decided about a bundle before its first byte is written."""

from __future__ import annotations

import numpy as np

from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import Packing, pack
from weightpager.compiler.packing.stored_blocks import StoredBlocks
from weightpager.compiler.packing.write import BundlePlan
from weightpager.compiler.rows.row_uses import choose_tables
from weightpager.compiler.selection.block_choice import transitions_of
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Keep
from weightpager.page_dtype import block_bytes
from weightpager.store import StorageModel
from weightpager.transitions import Transitions


def plan_bundle(prepared: Prepared, weights: TaskWeights, keep: Keep) -> BundlePlan:
    """Pack the blocks as the task file says, and put beside them what else a bundle holds."""
    task_file = prepared.source.task_file
    transitions = transitions_of(task_file)
    return BundlePlan(
        task_file.dtype,
        weights,
        keep,
        _pack(weights, keep, transitions),
        prepared.entries(),
        transitions,
        task_file.alignment if np.isfinite(task_file.alignment) else None,
        prepared.permutations,
        choose_tables(prepared.source, prepared.data),
    )


def _pack(weights: TaskWeights, keep: Keep, transitions: Transitions) -> Packing:
    task_file, paged = weights.source.task_file, weights.source.paged
    stored = [StoredBlocks.of(info.layer, keep[info.name], weights.versions(info)) for info in paged]
    size = block_bytes(task_file.block, task_file.dtype)
    return pack(stored, size, transitions.switch_rate(), StorageModel(), task_file.page)
