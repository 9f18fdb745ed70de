"""What to use at a given memory: this bundle, or something simpler that does as well."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from weightpager.bundle.reader import Bundle
from weightpager.bundle.report.choice import Choice, Losses
from weightpager.bundle.report.compile_report import FEW, LOWER_IS_BETTER, CompileReport
from weightpager.bundle.report.verdict import Verdict
from weightpager.page_dtype import block_bytes

_RECOVERY = {"none": "doing without recovery", "closed-form": "closed form", "finetune": "fine-tuning"}


@dataclass(frozen=True)
class Advice:
    """The choices, least memory first, and in words which one to take."""

    choices: tuple[Choice, ...]
    words: str


def advise(bundle: Bundle, report: CompileReport, budget: int | None = None) -> Advice | None:
    """Compare a bundle with its controls at equal resident bytes; None if nothing was measured to compare with.

    Args:
        bundle: the bundle.
        report: its own.
        budget: bytes for paged weights; None for those of the bundle's largest task.
    """
    losses = Losses.of(report)
    if not report.controls or losses is None:
        return None
    arena = max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes
    ours = losses.bundle(arena, _mean_switch_bytes(bundle))
    others = [losses.control(control) for control in report.controls]
    choices = sorted([ours, *others], key=lambda choice: choice.resident_bytes)
    room = arena if budget is None else budget
    verdict = Verdict(ours, others, room, _unit(report), sum(task.items for task in report.tasks))
    words = [verdict.words(), _remedy(ours, report.recover, bundle), few_items(report)]
    if ours.interval is None:
        words.append("How much of this is chance was not measured: the report is an earlier version's.")
    return Advice(tuple(choices), " ".join(filter(None, words)))


def few_items(report: CompileReport) -> str:
    """Which tasks have too few held-out texts or images to be judged by, in words; empty if none has."""
    counts = {task.name: task.items if task.texts is None else task.texts for task in report.tasks}
    few = ", ".join(f"{name} {count}" for name, count in counts.items() if count < FEW)
    chance = f"with fewer than {FEW} of a task, differences are mostly chance."
    return f"Few held-out texts or images ({few}): {chance}" if few else ""


def _remedy(ours: Choice, recover: str | None, bundle: Bundle) -> str:
    """What to do about a bundle that has lost accuracy, beyond chance."""
    if recover is None or ours.interval is None or not ours.lost:
        return ""
    ways = ["'recover: finetune'"] * (recover != "finetune") + ["less sparsity"]
    if bundle.manifest.dtype != "int4":
        times = bundle.block_bytes / block_bytes(bundle.manifest.block_shape, "int4")
        ways.append(f"'dtype: int4', in which as many bytes hold {times:.1f} times the blocks")
    loses = f"At this sparsity {_RECOVERY.get(recover, recover)} loses more than chance explains"
    return f"{loses}: take {', or '.join(ways)}."


def _mean_switch_bytes(bundle: Bundle) -> int:
    pages = [bundle.pages_of(task) for task in bundle.tasks]
    missing = [len(np.setdiff1d(b, a, assume_unique=True)) for a, b in permutations(pages, 2)]
    return round(sum(missing) / max(1, len(missing)) * bundle.page_bytes)


def _unit(report: CompileReport) -> str:
    kinds = {task.metric == LOWER_IS_BETTER for task in report.tasks}
    return {frozenset({True}): "% of perplexity", frozenset({False}): "points"}.get(frozenset(kinds), "points or %")
