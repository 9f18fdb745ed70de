"""What a bundle is, as a contest's result states it."""

from __future__ import annotations

import math

from weightpager.backends.native.model_limits import ModelConfig
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.fill import page_fill
from weightpager.bundle.report.overlap import mean_overlap, overlap
from weightpager.lab.contest.results.result import Facts
from weightpager.lab.contest.rivals.rival import DTYPE
from weightpager.page_dtype import block_bytes
from weightpager.store import StorageModel, all_switches


def facts(bundle: Bundle, *, random_weights: bool) -> Facts:
    """The facts of a bundle."""
    manifest, always = bundle.manifest, footprint(bundle, DTYPE)
    shared = overlap(bundle)
    kept = {task: len(bundle.kept_locations(task)) * bundle.block_bytes for task in bundle.tasks}
    blocks = bundle.dense_bytes // bundle.block_bytes
    planned = {(cost.from_task, cost.to_task): cost.bytes for cost in all_switches(bundle, StorageModel())}
    return Facts(
        name=bundle.path.name,
        model=ModelConfig.read(bundle).architecture,
        random_weights=random_weights,
        tasks=list(bundle.tasks),
        sparsity=1 - sum(kept.values()) / len(kept) / bundle.dense_bytes,
        overlap=shared.tolist(),
        mean_overlap=mean_overlap(shared),
        dtype=manifest.dtype,
        block=manifest.block,
        page_bytes=bundle.page_bytes,
        page_fill=page_fill(bundle),
        dense_bytes=bundle.dense_bytes,
        dense_bf16_bytes=blocks * block_bytes(BlockShape.parse(manifest.block), "bfloat16"),
        largest_task_bytes=largest_task(bundle) * bundle.page_bytes,
        kept_bytes=sum(kept.values()),
        stored_bytes=len(bundle.pages) * bundle.page_bytes,
        table_bytes=always.tables,
        resident_bytes=always.resident,
        private_bytes=always.private,
        planned=[[planned.get((a, b), 0) for b in bundle.tasks] for a in bundle.tasks],
    )


def largest_task(bundle: Bundle) -> int:
    """Pages of the task that has most."""
    return max(len(bundle.pages_of(task)) for task in bundle.tasks)


def budget_for(bundle: Bundle, room: float) -> int:
    """Bytes for weights that have room for so many of the largest task.

    Where all tasks have the same pages, that is room for all pages: a switch reads only rows of tables that texts want.
    """
    return footprint(bundle, DTYPE).total + math.ceil(room * largest_task(bundle)) * bundle.page_bytes
