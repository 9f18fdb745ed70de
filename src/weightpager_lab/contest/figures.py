"""From rows that can be compared to the figures that were asked for: pure. What can't be computed has no key."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Literal

from weightpager.backends.native.model_limits import ModelConfig
from weightpager.blocks import BlockShape
from weightpager.bundle import Bundle
from weightpager.bundle.footprint import footprint
from weightpager.bundle.report.compile_report import LOWER_IS_BETTER
from weightpager.bundle.report.page_statistics import mean_overlap, overlap, page_fill
from weightpager.page_dtype import block_bytes
from weightpager.store import StorageModel, all_switches
from weightpager_lab.contest.result import Contest, Facts, Row
from weightpager_lab.contest.rivals.rival import DTYPE
from weightpager_lab.timing import spread

Field = Literal["ready", "first_output"]

RIVALS = {
    "whole": "sparse_whole",
    "whole_copied": "sparse_copied",
    "strict": "sparse_strict",
    "language": "sparse_language",
    "dense": "dense_direct",
    "unaligned": "ours_unaligned",
}
"""Word in a figure's key → method whose time is divided by ours."""

NEVER_LOAD = {
    "bf16": "shared_bf16",
    "int8": "shared_int8",
    "mask": "shared_mask",
    "dense_int8": "dense_int8",
    "dense_int4": "dense_int4",
    "all_blocks": "ours_all_blocks",
    "one_mask": "ours_one_mask",
}
"""Word in a figure's key → method that has all that it needs in memory from the start."""

ACCURACY: Mapping[str, Sequence[str]] = {
    "sparse_whole": ["accuracy.mean"],
    "sparse_copied": ["accuracy.mean"],
    "sparse_strict": ["accuracy.mean"],
    "sparse_language": ["accuracy.mean"],
    "dense_direct": ["accuracy.dense_mean"],
    "dense_copied": ["accuracy.dense_mean"],
    "dense_int8": ["accuracy.int8_mean"],
    "dense_int4": ["accuracy.int4_mean"],
    "shared_mask": ["accuracy.shared_mask_mean"],
    "ours_all_blocks": ["accuracy.{dtype}_mean", "accuracy.all_blocks_mean"],
    "ours_one_mask": ["accuracy.shared_mask_mean", "accuracy.one_mask_mean"],
}
"""Method → the figures that are its mean accuracy, of which the better counts; ``dtype`` is that of the pages.

Sparse checkpoints have the bundle's. A companion has its own and that of a control, which needs as many bytes but may
have been trained longer. Adapters' isn't measured.
"""

STRICT_SHARE = 0.7
"""Share of the speed-up that overlap alone promises over the strict baseline; the goal."""


def figures(contest: Contest) -> dict[str, float]:
    """All figures of a contest whose `figures` are still empty."""
    values: dict[str, float | None] = {}
    values |= _switch(contest)
    values |= _memory(contest)
    values |= _bookkeeping(contest)
    values |= _accuracy(contest)
    values |= _compile(contest.compile_seconds)
    return {key: float(f"{value:.5g}") for key, value in values.items() if value is not None}


def speedup(theirs: Row, ours: Row, field: Field) -> dict[str, float] | None:
    """Their time divided by ours over the pairs that both have: all pairs together, the worst pair and the best one."""
    a, b = theirs.medians(field), ours.medians(field)
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    ratios = [a[pair] / b[pair] for pair in common]
    mean = sum(a[pair] for pair in common) / sum(b[pair] for pair in common)
    return {"mean": mean, "min": min(ratios), "max": max(ratios)}


def _switch(contest: Contest) -> dict[str, float | None]:
    ours = contest.row("ours")
    values: dict[str, float | None] = {"switch.overlap_mean": contest.facts.mean_overlap}
    if contest.facts.mean_overlap < 1:
        values["switch.speedup_strict_asked"] = STRICT_SHARE / (1 - contest.facts.mean_overlap)
    if ours is None:
        return values
    for word, name in RIVALS.items():
        theirs = contest.row(name)
        for field, prefix in (("ready", ""), ("first_output", "first_output_")):
            ratios = None if theirs is None else speedup(theirs, ours, field)  # type: ignore[arg-type]
            for kind, value in (ratios or {}).items():
                values[f"switch.{prefix}speedup_{word}_{kind}"] = value
    for field in ("ready", "first_output"):
        for kind, value in (spread(ours.values(field)) or {}).items():  # type: ignore[arg-type]
            values[f"switch.{field}_{kind}_ms"] = 1e3 * value
    read = ours.values("bytes")
    if read and sum(ours.values("ready")):
        values["switch.bytes_mean"] = fmean(read)
        values["switch.gbps"] = sum(read) / sum(ours.values("ready")) / 1e9
    return values


def _memory(contest: Contest) -> dict[str, float | None]:
    facts, ours = contest.facts, contest.row("ours")
    if ours is None or ours.found is None:
        return {}
    paged = ours.found.memory.paged
    values: dict[str, float | None] = {
        "memory.paged_bytes": paged,
        "memory.weights_bytes": ours.found.memory.weights,
        "memory.process_peak_bytes": ours.peak_memory,
        "memory.process_proportional_bytes": ours.found.memory.proportional,
        "memory.paged_below_checkpoints": 1 - paged / facts.kept_bytes,
    }
    for word, name in NEVER_LOAD.items():
        theirs = contest.row(name)
        if theirs is None or theirs.found is None:
            continue
        values[f"memory.paged_below_shared_{word}"] = 1 - paged / theirs.found.memory.paged
        values[f"memory.weights_below_shared_{word}"] = 1 - ours.found.memory.weights / theirs.found.memory.weights
        values |= _process(contest, word, theirs)
    best = best_rival(contest)
    values["memory.weights_vs_best_rival"] = best and ours.found.memory.weights / best
    return values


def _process(contest: Contest, word: str, theirs: Row) -> dict[str, float | None]:
    """How far our process is below another one that computes with the same backend."""
    ours = alike(contest, theirs)
    if ours is None or ours.found is None or theirs.found is None:
        return {}
    key = f"memory.process_on_{theirs.found.backend}_below_shared_{word}"
    return {
        key: _below(ours.peak_memory, theirs.peak_memory),
        f"{key}_proportional": _below(ours.found.memory.proportional, theirs.found.memory.proportional),
    }


def alike(contest: Contest, theirs: Row) -> Row | None:
    """Our row that computes with the same backend as another; None if there is none."""
    backend = theirs.found and theirs.found.backend
    known = [row for name in ("ours", "ours_on_torch") if (row := contest.row(name)) is not None]
    return next((row for row in known if row.found and row.found.backend == backend), None)


def best_rival(contest: Contest) -> int | None:
    """The least weights in memory of a rival that is known to lose at most as much accuracy as we do.

    None where there is no such rival, or where no bundle of all blocks took part, which may have fewer than all others.
    """
    if contest.row(NEVER_LOAD["all_blocks"]) is None:
        return None
    known = _accuracy(contest)
    ours = known.get("accuracy.mean")
    lower = any(score.metric == LOWER_IS_BETTER for score in contest.scores)
    weights_bytes = []
    for name, keys in ACCURACY.items():
        row = contest.row(name)
        found = [value for key in keys if (value := known.get(key.format(dtype=contest.facts.dtype))) is not None]
        if row is None or row.found is None or ours is None or not found:
            continue
        if (min(found) <= ours if lower else max(found) >= ours) and row.found.memory.weights:
            weights_bytes.append(row.found.memory.weights)
    return min(weights_bytes, default=None)


def _below(ours: int | None, theirs: int | None) -> float | None:
    return None if ours is None or not theirs else 1 - ours / theirs


def _bookkeeping(contest: Contest) -> dict[str, float | None]:
    facts, values = contest.facts, {}
    values["bookkeeping.table_share"] = facts.table_bytes / (facts.table_bytes + facts.stored_bytes)
    ours, dense = contest.row("ours"), contest.row("dense_direct")
    if ours is None or ours.found is None:
        return {**values}
    forward = median(ours.found.forwards)
    values["bookkeeping.forward_ms"] = 1e3 * forward
    values["bookkeeping.tokens_per_second"] = ours.found.tokens / forward
    if ours.found.written:
        values["bookkeeping.written_tokens_per_second"] = 1 / median(ours.found.written)
    if dense is not None and dense.found is not None and contest.has_bf16:  # else torch is slow in bfloat16
        values["bookkeeping.forward_speedup_dense"] = median(dense.found.forwards) / forward
    return {**values}


def _accuracy(contest: Contest) -> dict[str, float | None]:
    """Means over the tasks that have a dense score; none where some are perplexities and others aren't."""
    known = [score for score in contest.scores if score.dense is not None]
    if len({score.metric == LOWER_IS_BETTER for score in known}) != 1:
        return {}
    values: dict[str, float | None] = {
        "accuracy.mean": fmean(score.sparse for score in known),
        "accuracy.dense_mean": fmean(score.dense for score in known if score.dense is not None),
    }
    for control in contest.controls:
        if all(score.name in control.scores for score in known):
            values[f"accuracy.{_key(control.name)}_mean"] = fmean(control.scores[score.name] for score in known)
    for name, scores in contest.companion_scores.items():
        found = {score.name: score.sparse for score in scores}
        if all(score.name in found for score in known):
            values[f"accuracy.{name}_mean"] = fmean(found[score.name] for score in known)
    return values


def _compile(seconds: Mapping[str, float]) -> dict[str, float | None]:
    found: dict[str, float | None] = {f"compile.{_key(stage)}_seconds": value for stage, value in seconds.items()}
    if seconds.get("calibrate"):
        found["compile.align_pack_share_of_calibrate"] = align_pack_share(seconds)
    return found


def align_pack_share(seconds: Mapping[str, float]) -> float:
    """Seconds of alignment, its floors included, and packing, as a share of the calibration's."""
    return sum(seconds.get(stage, 0.0) for stage in ("floors", "align", "pack")) / seconds["calibrate"]


def _key(name: str) -> str:
    return name.replace(" ", "_")


def facts(bundle: Bundle, *, random_weights: bool) -> Facts:
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
    return max(len(bundle.pages_of(task)) for task in bundle.tasks)


def budget_for(bundle: Bundle, room: float) -> int:
    """Bytes for weights that have room for so many of the largest task.

    Where all tasks have the same pages, that is room for all pages: a switch reads only rows of tables that texts want.
    """
    return footprint(bundle, DTYPE).total + math.ceil(room * largest_task(bundle)) * bundle.page_bytes
