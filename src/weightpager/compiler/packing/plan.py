"""`BundlePlan`: all that is decided about a bundle before its first byte is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from msgspec import structs

from weightpager.bundle import TaskEntry
from weightpager.bundle.format.placement import NOTHING_MOVED, Permutations
from weightpager.compiler.model.half_layers import dropped_halves, units_of
from weightpager.compiler.model.task_weights import TaskWeights
from weightpager.compiler.packing.pack import Packing, StoredBlocks, pack
from weightpager.compiler.packing.rows import NO_ROWS, RowChoice, choose_tables
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.masks import Keep
from weightpager.page_dtype import PageDtype, block_bytes
from weightpager.runtime.budget import usual_faults
from weightpager.store import StorageModel
from weightpager.transitions import Transitions

_ALL = 1 - 2.0**-20
"""Of a task that keeps nothing: the manifest has sparsities below 1."""


@dataclass(frozen=True)
class BundlePlan:
    """All that has been decided about a bundle before its first byte is written.

    Attributes:
        tasks: in the order of the signatures' bits.
        transitions: how often each task follows each other one.
        alignment: strength λ that the masks were aligned with; None for one shared mask.
        permutations: the order of axes that the values have gone through.
        rows: embedding tables whose rows come on demand.
    """

    dtype: PageDtype
    weights: TaskWeights
    keep: Keep
    packing: Packing
    tasks: tuple[TaskEntry, ...]
    transitions: Transitions
    alignment: float | None
    permutations: Permutations = NOTHING_MOVED
    rows: RowChoice = NO_ROWS


def plan_bundle(prepared: Prepared, weights: TaskWeights, keep: Keep) -> BundlePlan:
    """Pack the blocks as the task file says, and put beside them what else a bundle holds."""
    task_file = prepared.task_file
    transitions = prepared.source.transitions
    rows = choose_tables(prepared.source, prepared.data)
    return BundlePlan(
        task_file.dtype,
        weights,
        keep,
        _pack(weights, keep, transitions, usual_faults(rows.entries())),
        entries(prepared, keep),
        transitions,
        task_file.alignment if np.isfinite(task_file.alignment) else None,
        prepared.permutations,
        rows,
    )


def entries(prepared: Prepared, keep: Keep) -> tuple[TaskEntry, ...]:
    """The tasks as the manifest lists them, with what they drop whole; their masks come first in ``keep``."""
    found = prepared.entries()
    if not units_of(prepared.source):
        return found
    blocks = sum(info.grid.count for info in prepared.source.paged)
    changed = []
    for number, entry in enumerate(found):
        kept = sum(int(keep[info.name][:, number].sum()) for info in prepared.source.paged)
        modules = [name for half in dropped_halves(prepared.source, keep, number) for name in half.modules]
        changed.append(structs.replace(entry, sparsity=min(1 - kept / blocks, _ALL), dropped=modules))
    return tuple(changed)


def _pack(weights: TaskWeights, keep: Keep, transitions: Transitions, faults: float) -> Packing:
    task_file, paged = weights.source.task_file, weights.source.paged
    stored = [StoredBlocks.of(info.layer, keep[info.name], weights.versions(info)) for info in paged]
    size = block_bytes(task_file.block, task_file.dtype)
    return pack(stored, size, transitions.switch_rate(), StorageModel(), task_file.page, faults)
