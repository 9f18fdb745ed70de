"""What to use in a budget: this bundle, or something simpler that does as well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np

from weightpager.bundle.footprint import budget_of_shared, footprint
from weightpager.bundle.format.manifest import transitions_of
from weightpager.bundle.reader import Bundle
from weightpager.bundle.report.choice import Choice, Losses
from weightpager.bundle.report.compile_report import DENSE, FEW, LOWER_IS_BETTER, MASK, CompileReport, ControlScore, Fit
from weightpager.bundle.report.interval import Interval, turned
from weightpager.bundle.report.verdict import Verdict
from weightpager.config import format_enough, parse_size
from weightpager.page_dtype import PageDtype, block_bytes

_RECOVERY = {"none": "doing without recovery", "closed-form": "closed form", "finetune": "fine-tuning"}

_HEAVY = 5.0
"""Points, or percent of perplexity: a task that loses more for sure is named whatever the bundle was compared with."""

_MOST_TOLD = 1_000_000
"""A perplexity may rise beyond all bounds; no loss above this is told from another."""


@dataclass(frozen=True)
class Advice:
    """The choices, least memory first, and in words which one to take."""

    choices: tuple[Choice, ...]
    words: str


def advise(bundle: Bundle, report: CompileReport, budget: int | None = None) -> Advice | None:
    """Compare a bundle with its controls in a budget; None if nothing was measured to compare with.

    Args:
        bundle: the bundle.
        report: its own.
        budget: bytes; None for the smallest in which all of the bundle's tasks run.
    """
    losses = Losses.of(report)
    if not report.controls or losses is None:
        return None
    ours = _ours(losses, bundle, budget)
    others = [losses.control(control, *_compiled(bundle, report, control)) for control in report.controls]
    choices = sorted([ours, *others], key=lambda choice: choice.resident_bytes)
    room = budget or parse_size(format_enough(ours.budget or 0))  # as people state it
    verdict = Verdict(ours, others, room, _unit(report), sum(task.items for task in report.tasks))
    remedy = heavy_losses(report) or _remedy(ours, report.recover, bundle)
    words = [verdict.words(), remedy, few_items(report)]
    if ours.interval is None:
        words.append("How much of this is chance was not measured: the report is an earlier version's.")
    return Advice(tuple(choices), " ".join(filter(None, words)))


def _ours(losses: Losses, bundle: Bundle, budget: int | None) -> Choice:
    """The bundle, with all its pages in memory where they fit, else with those of its largest task."""
    always, every = footprint(bundle).total, len(bundle.pages) * bundle.page_bytes
    if budget is not None and always + every <= budget:
        return losses.bundle(every, always + every, 0)
    arena = max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes
    return losses.bundle(arena, always + arena, _mean_switch_bytes(bundle))


def _compiled(bundle: Bundle, report: CompileReport, control: ControlScore) -> tuple[int | None, str]:
    """The budget that a control needs as a bundle, and how a task file says so; None where weightpager makes none."""
    own = bundle.manifest.dtype
    dtype = {DENSE: "bfloat16", MASK: own}.get(control.name, control.name)
    if dtype not in get_args(PageDtype):
        return None, ""
    whole = "`sparsity: 0`" + " instead of `fit`" * (report.fit is not None)
    line = "`alignment: inf`" if control.name == MASK else whole
    line += f", `dtype: {dtype}`" * (dtype != own)
    line += " and as many more steps of `training`" * (control.name == DENSE)
    return budget_of_shared(bundle, control.resident_bytes, dtype), line


def heavy_losses(report: CompileReport) -> str:
    """Which tasks have lost much, as chance can't explain, and what to do, in words; empty if none has."""
    heavy = _heavy(report)
    if not heavy:
        return ""
    units = {task.name: "% of perplexity" if task.metric == LOWER_IS_BETTER else "points" for task in report.tasks}
    named = ", ".join(f"{name} loses at least {least:,} {units[name]}" for name, least in heavy.items())
    less = "lower 'sparsity'" if report.fit is None else _larger_fit(report.fit)
    trained = ", or train with 'recover: finetune'" if report.recover in ("none", "closed-form") else ""
    return f"{named}: {less}{trained}."


def _larger_fit(fit: Fit) -> str:
    """What to state for 'fit', in words: as much as drops nothing, where that is known."""
    if fit.whole is None:
        return "state more for 'fit'"
    return f"state more for 'fit' ({format_enough(fit.whole).replace(' ', '')} drops no block)"


def few_items(report: CompileReport) -> str:
    """Which tasks have too few held-out texts or images to be judged by, in words; empty if none has.

    A task that has lost much isn't among them: few items are enough to see that.
    """
    heavy = _heavy(report)
    counts = {task.name: task.items if task.texts is None else task.texts for task in report.tasks}
    few = ", ".join(f"{name} {count}" for name, count in counts.items() if count < FEW and name not in heavy)
    chance = f"with fewer than {FEW} of a task, differences are mostly chance."
    return f"Few held-out texts or images ({few}): {chance}" if few else ""


def _heavy(report: CompileReport) -> dict[str, int]:
    """Task → what it has lost at least, of the tasks that have lost much."""
    lost = _loss_intervals(report)
    return {name: int(min(low, _MOST_TOLD)) for name, (low, _) in lost.items() if low > _HEAVY}


def _loss_intervals(report: CompileReport) -> dict[str, Interval]:
    """Task → interval of its loss, against a dense model that was trained as long if there is one."""
    gaps = next((control.gap_intervals for control in report.controls if control.name == DENSE), {})
    known = {task.name: task.loss_interval for task in report.tasks if task.loss_interval is not None}
    return known | {name: turned(gap) for name, gap in gaps.items()}


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
    """What a switch loads, weighted by how often each one is made."""
    pages = [bundle.pages_of(task) for task in bundle.tasks]
    missing = [[len(np.setdiff1d(after, before, assume_unique=True)) for after in pages] for before in pages]
    return round(float((transitions_of(bundle.manifest).switch_rate() * missing).sum()) * bundle.page_bytes)


def _unit(report: CompileReport) -> str:
    kinds = {task.metric == LOWER_IS_BETTER for task in report.tasks}
    return {frozenset({True}): "% of perplexity", frozenset({False}): "points"}.get(frozenset(kinds), "points or %")
