"""What to use at a given memory: this bundle, or something simpler that does as well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from weightpager.bundle.reader import Bundle
from weightpager.bundle.report import LOWER_IS_BETTER, CompileReport
from weightpager.config import format_enough, format_room

_HOW = {
    "shared mask": " 'alignment: inf' compiles that.",
    "int8": " 'sparsity: 0' with 'dtype: int8' compiles that.",
    "int4": " Other libraries make that.",
}
"""How to have a control instead of the bundle."""


@dataclass(frozen=True)
class Choice:
    """A way to serve all tasks.

    Attributes:
        name: what it is.
        resident_bytes: of paged weights in memory, one task's.
        switch_bytes: loaded by an average switch.
        loss: mean over the tasks of what it loses against dense: points for a share of right answers, percent for
            perplexity. Negative where it is better than dense.
    """

    name: str
    resident_bytes: int
    switch_bytes: int
    loss: float


@dataclass(frozen=True)
class Advice:
    """The choices by memory, least first, and what to make of them in words."""

    choices: tuple[Choice, ...]
    words: str


def advise(bundle: Bundle, report: CompileReport, budget: int | None = None) -> Advice | None:
    """Compare a bundle with its controls at equal resident bytes; None if nothing was measured to compare with.

    Args:
        bundle: the bundle.
        report: its own.
        budget: bytes for paged weights; None for those of the bundle's largest task.
    """
    dense = {task.name: task.dense for task in report.tasks}
    known = {name: value for name, value in dense.items() if value is not None and math.isfinite(value)}
    if not report.controls or len(known) < len(dense):
        return None
    metrics = {task.name: task.metric for task in report.tasks}
    arena = max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes
    loss = _loss({task.name: task.sparse for task in report.tasks}, known, metrics)
    ours = Choice("this bundle", arena, _mean_switch_bytes(bundle), loss)
    others = [
        Choice(control.name, control.resident_bytes, 0, _loss(control.scores, known, metrics))
        for control in report.controls
    ]
    choices = sorted([ours, *others], key=lambda choice: choice.resident_bytes)
    return Advice(tuple(choices), _words(ours, others, arena if budget is None else budget, _unit(metrics)))


def _mean_switch_bytes(bundle: Bundle) -> int:
    pages = [bundle.pages_of(task) for task in bundle.tasks]
    missing = [len(np.setdiff1d(b, a, assume_unique=True)) for a, b in permutations(pages, 2)]
    return round(sum(missing) / max(1, len(missing)) * bundle.page_bytes)


def _loss(scores: Mapping[str, float], dense: Mapping[str, float], metrics: Mapping[str, str]) -> float:
    losses = [
        100 * (scores[task] / dense[task] - 1 if metrics[task] == LOWER_IS_BETTER else dense[task] - scores[task])
        for task in dense
    ]
    loss = sum(losses) / len(losses)
    return math.inf if math.isnan(loss) else loss


def _unit(metrics: Mapping[str, str]) -> str:
    kinds = {metric == LOWER_IS_BETTER for metric in metrics.values()}
    return {frozenset({True}): "% of perplexity", frozenset({False}): "points"}.get(frozenset(kinds), "points or %")


def _words(ours: Choice, others: Sequence[Choice], budget: int, unit: str) -> str:
    fitting = [choice for choice in others if choice.resident_bytes <= budget]
    best = min(fitting, key=lambda choice: choice.loss, default=None)
    if ours.resident_bytes > budget:
        room = format_room(budget)
        if best is None:
            return f"Nothing that was measured fits {room}: compile with more sparsity."
        found = f"This bundle does not fit {room} of paged weights; {_called(best)} does and {_loses(best, unit)}."
        return found + _HOW.get(best.name, "")
    room = format_enough(budget)
    if best is not None and best.loss <= ours.loss:
        return (
            f"With {room} for paged weights use {_called(best)}: it {_loses(best, unit)} and loads nothing at a "
            f"switch; this bundle {_loses(ours)}.{_HOW.get(best.name, '')} "
            "Paging pays with less memory: compile with more sparsity."
        )
    gain = "nothing simpler that was measured fits"
    if best is not None:
        gain = f"{_called(best)}, the next best, {_lost(best)}"
    words = f"With {room} for paged weights use this bundle: it {_loses(ours, unit, ' against dense')}; {gain}."
    larger = [choice for choice in others if choice.resident_bytes > budget and choice.loss < ours.loss]
    if larger:
        least = min(larger, key=lambda choice: choice.resident_bytes)
        words += f" With {format_enough(least.resident_bytes)} {_called(least)} would be better: it {_loses(least)}."
    return words


def _called(choice: Choice) -> str:
    return "one shared mask" if choice.name == "shared mask" else choice.name


def _loses(choice: Choice, unit: str = "", against: str = "") -> str:
    """That a choice loses so much; or what instead, as some do better than dense."""
    loss = round(choice.loss, 1)
    if loss < 0:
        return f"beats dense by {-loss:.1f} {unit}".rstrip()
    return f"loses {abs(loss):.1f} {unit}".rstrip() + against


def _lost(choice: Choice) -> str:
    return _loses(choice).removeprefix("loses ")
