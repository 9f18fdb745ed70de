"""What to use in a budget: this bundle, or something simpler that does as well.

The most accurate way is advised; of those that chance may order, the cheapest. A way is cheaper to run if an average
switch loads less and, of those that load as much, if it needs the smaller budget.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from weightpager.bundle.footprint import budget_of_shared, footprint
from weightpager.bundle.format.manifest import transitions_of
from weightpager.bundle.reader import Bundle
from weightpager.bundle.report.compile_report import (
    DENSE,
    FEW,
    LOWER_IS_BETTER,
    MASK,
    UNKNOWN,
    CompileReport,
    ControlScore,
    Fit,
    Interval,
)
from weightpager.config import format_enough, format_room, format_size, parse_size
from weightpager.page_dtype import DEFAULT, ENCODINGS, PageDtype, block_bytes


def holds_zero(interval: tuple[float, float]) -> bool:
    """Whether an interval of a difference includes zero, so that the difference may be chance."""
    return interval[0] <= 0 <= interval[1]


def turned(interval: tuple[float, float]) -> tuple[float, float]:
    return -interval[1], -interval[0]


def mean_interval(estimates: Sequence[float], intervals: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The interval of the mean of values that were measured apart from one another.

    The distances from the estimates to the ends are added as squares (Newcombe 1998; Zou and Donner 2008), which needs
    nothing but the intervals: they may come from different metrics, and any of them may be left out later.
    """
    centre, count = sum(estimates) / len(estimates), len(estimates)
    pairs = list(zip(estimates, intervals, strict=True))
    below = math.hypot(*(max(0.0, estimate - low) for estimate, (low, _) in pairs)) / count
    above = math.hypot(*(max(0.0, high - estimate) for estimate, (_, high) in pairs)) / count
    interval = centre - below, centre + above
    return UNKNOWN if math.isnan(interval[0]) or math.isnan(interval[1]) else interval


def items_to_tell(estimate: float, interval: tuple[float, float], items: int) -> int | None:
    """About how many held-out items would show a difference of this size; None if no number would.

    The interval is that of the estimate, found on so many items.
    """
    reach = estimate - interval[0] if estimate > 0 else interval[1] - estimate
    if estimate == 0 or not math.isfinite(reach):
        return None
    ratio = reach / abs(estimate)
    needed = items * ratio * ratio
    if not needed < 1e9:
        return None
    scale: int = 10 ** max(0, len(str(math.ceil(needed))) - 2)
    return math.ceil(needed / scale) * scale


@dataclass(frozen=True)
class Way:
    """A way to serve all tasks.

    Attributes:
        resident_bytes: bytes of paged weights in memory, those of one task.
        budget: bytes of the smallest budget that it runs in; None where weightpager can't compile it.
        switch_bytes: bytes that an average switch loads.
        loss: mean over the tasks of what it loses against dense: points for a share of right answers, percent for
            perplexity. Negative where it is better than dense.
        interval: the loss's interval; None where chance wasn't measured.
        gap: interval of what it loses more than the bundle; a point where chance isn't known.
        line: what a task file says to have it; empty for the bundle, and where weightpager can't compile it.
    """

    name: str
    resident_bytes: int
    budget: int | None
    switch_bytes: int
    loss: float
    interval: Interval | None = None
    gap: Interval = (0.0, 0.0)
    line: str = ""

    def fits(self, budget: int) -> bool:
        """Whether it can be compiled, and runs in so many bytes."""
        return self.budget is not None and self.budget <= budget

    def told_from(self, other: Way) -> bool:
        """Whether the two losses differ by more than chance, by what each loses more than the bundle."""
        return self.gap[1] < other.gap[0] or other.gap[1] < self.gap[0]

    @property
    def lost(self) -> bool:
        """Whether it is worse than dense by more than chance explains."""
        return round(self.loss, 1) > 0 and (self.interval is None or self.interval[0] > 0)


@dataclass(frozen=True)
class Losses:
    """What the bundle and its controls lose, against the dense model that was trained as long as they were.

    ``dense`` is that model's metric, by task.
    """

    report: CompileReport
    dense: Mapping[str, float]

    @classmethod
    def of(cls, report: CompileReport) -> Losses | None:
        """None if a dense score isn't known."""
        trained_on = {control.name: control.scores for control in report.controls}.get(DENSE, {})
        dense = {task.name: trained_on.get(task.name, task.dense) for task in report.tasks}
        known = {name: value for name, value in dense.items() if value is not None and math.isfinite(value)}
        return cls(report, known) if len(known) == len(dense) else None

    def bundle(self, resident_bytes: int, budget: int, switch_bytes: int) -> Way:
        return Way("this bundle", resident_bytes, budget, switch_bytes, self._mean(self._ours), self._interval())

    def control(self, control: ControlScore, budget: int | None, line: str) -> Way:
        """One of its controls, which needs this budget and is compiled by this line of a task file."""
        scores = {task: control.scores[task] for task in self.dense}
        losses = self._losses(scores)
        return Way(
            control.name,
            control.resident_bytes,
            budget,
            0,
            self._mean(scores),
            (0.0, 0.0) if control.name == DENSE else _mean_interval(losses, control.loss_intervals),
            self._gap(scores, control.gap_intervals),
            line,
        )

    def _gap(self, scores: Mapping[str, float], intervals: Mapping[str, Interval]) -> Interval:
        losses, ours = self._losses(scores), self._losses(self._ours)
        theirs, mean = self._mean(scores), self._mean(self._ours)
        known = _mean_interval({task: losses[task] - ours[task] for task in losses}, intervals)
        if known is not None and math.isfinite(theirs) == math.isfinite(mean):
            return known
        gap = 0.0 if theirs == mean else theirs - mean
        return gap, gap

    def _interval(self) -> Interval | None:
        losses = self._losses(self._ours)
        for control in self.report.controls:
            if control.name == DENSE:
                gap = _mean_interval({task: -loss for task, loss in losses.items()}, control.gap_intervals)
                return None if gap is None else turned(gap)
        intervals = {task.name: task.loss_interval for task in self.report.tasks if task.loss_interval is not None}
        return _mean_interval(losses, intervals)

    @property
    def _ours(self) -> dict[str, float]:
        return {task.name: task.sparse for task in self.report.tasks}

    def _losses(self, scores: Mapping[str, float]) -> dict[str, float]:
        metrics = {task.name: task.metric for task in self.report.tasks}
        return {
            task: 100 * (scores[task] / start - 1 if metrics[task] == LOWER_IS_BETTER else start - scores[task])
            for task, start in self.dense.items()
        }

    def _mean(self, scores: Mapping[str, float]) -> float:
        losses = self._losses(scores)
        loss = sum(losses.values()) / len(losses)
        return math.inf if math.isnan(loss) else loss


def _mean_interval(losses: Mapping[str, float], intervals: Mapping[str, Interval]) -> Interval | None:
    """The interval of the mean over tasks; None unless each task has one."""
    if not losses.keys() <= intervals.keys():
        return None
    return mean_interval(list(losses.values()), [intervals[task] for task in losses])


_NAMES = {DENSE: "all blocks in bfloat16", MASK: "one shared mask"}


@dataclass(frozen=True)
class Comparison:
    """A bundle, its controls and a budget in bytes; controls that weightpager can't compile are never advised.

    Attributes:
        unit: the unit of losses.
        items: number of held-out items that they were measured on.
    """

    ours: Way
    others: Sequence[Way]
    budget: int
    unit: str
    items: int

    def words(self) -> str:
        fitting = sorted((c for c in (self.ours, *self.others) if c.fits(self.budget)), key=_loss)
        if not fitting:
            return f"Nothing that was measured fits {self._stated}: {_needs(self.ours)}{self._more_sparsity()}"
        alike = [choice for choice in fitting if not choice.told_from(fitting[0])]
        chosen = min(alike, key=lambda choice: (choice.switch_bytes, choice.budget))
        rest = [choice for choice in fitting if choice is not chosen]
        because = "".join((self._against(chosen, rest), self._in_more_memory(chosen), self._in_less(chosen)))
        return f"With {self._stated} take {_needs(chosen)}; it {_loses(chosen, self.unit)}{because}"

    def _against(self, chosen: Way, rest: Sequence[Way]) -> str:
        """Why not another one that fits: the bundle if it isn't chosen, else the best of its controls."""
        if not self.ours.fits(self.budget):
            needs = _needs(self.ours)
            return f". {needs[0].upper()}{needs[1:]}."
        other = self.ours if chosen is not self.ours else next(iter(rest), None)
        if other is None:
            return ". Nothing simpler that was measured fits."
        told = f"; {_called(other)} {_loses(other)}."
        if chosen.told_from(other):
            return told
        control = other if chosen is self.ours else chosen
        gap = control.loss - self.ours.loss
        needed = items_to_tell(gap, control.gap, self.items) if round(gap, 1) else None
        more = f"; about {needed:,} would, if the difference is as large as it seems" if needed else ""
        return (
            f"{told} They can't be told apart by {self.items:,} held-out items{more}. The first is the cheaper to run."
        )

    def _in_more_memory(self, chosen: Way) -> str:
        """What would be better, beyond chance, with a larger budget: what needs the least."""
        larger = [
            choice
            for choice in self.others
            if choice.budget is not None and not choice.fits(self.budget)
            if choice.loss < chosen.loss and choice.told_from(chosen)
        ]
        if not larger:
            return ""
        best = min(larger, key=lambda choice: choice.budget or 0)
        return f" Better, in more memory: {_needs(best)}; it {_loses(best)}."

    def _in_less(self, chosen: Way) -> str:
        if chosen is self.ours or not self.ours.fits(self.budget):
            return ""
        return f" Paging pays with less memory{self._more_sparsity()}"

    def _more_sparsity(self) -> str:
        """The end of a sentence that advises more sparsity, unless sparsity has cost accuracy already."""
        return "." if self.ours.lost else ": compile with more sparsity."

    @property
    def _stated(self) -> str:
        return f"`--budget {format_room(self.budget).replace(' ', '')}`"


def _loss(choice: Way) -> float:
    return choice.loss


def _called(choice: Way) -> str:
    return _NAMES.get(choice.name, choice.name if not choice.line else f"all blocks in {choice.name}")


def _needs(choice: Way) -> str:
    """A way, the line of the task file that compiles it, the budget that it needs and what its switches load."""
    line = f"{choice.line}, " if choice.line else ""
    needs = f"needs `--budget {format_enough(choice.budget or 0).replace(' ', '')}`"
    loads = (
        f"loads {format_size(choice.switch_bytes)} at a switch" if choice.switch_bytes else "loads nothing at a switch"
    )
    return f"{_called(choice)}: {line}{needs}, {loads}"


def _loses(choice: Way, unit: str = "") -> str:
    """How a choice compares with dense, in words: worse, better, or no different as far as the data tells."""
    loss, reach = round(choice.loss, 1), ""
    if choice.name == DENSE:
        return "loses nothing"
    if choice.interval is not None:
        if choice.interval == UNKNOWN:
            return "can't be told from dense by so few texts"
        if holds_zero(choice.interval):
            better, worse = f"{-choice.interval[0]:.1f} {unit}".rstrip(), f"{choice.interval[1]:.1f}"
            return f"does as well as dense, as far as the data tells ({better} better to {worse} worse)"
        low, high = turned(choice.interval) if loss < 0 else choice.interval
        reach = f" ({low:.1f} to {high:.1f})"
    if loss < 0:
        return f"beats dense by {-loss:.1f} {unit}".rstrip() + reach
    return f"loses {abs(loss):.1f} {unit}".rstrip() + reach


_RECOVERY = {"none": "doing without recovery", "closed-form": "closed form", "finetune": "fine-tuning"}

_HEAVY = 5.0
"""Points, or percent of perplexity: a task that loses more for sure is named whatever the bundle was compared with."""

_MOST_TOLD = 1_000_000
"""A perplexity may rise beyond all bounds; no loss above this is told from another."""


@dataclass(frozen=True)
class Advice:
    """The choices, least memory first, and in words which one to take."""

    choices: tuple[Way, ...]
    words: str


def advise(bundle: Bundle, report: CompileReport, budget: int | None = None) -> Advice | None:
    """Compare a bundle with its controls in a budget; None if nothing was measured to compare with.

    The budget is in bytes; by default it is the smallest in which all of the bundle's tasks run.
    """
    losses = Losses.of(report)
    if not report.controls or losses is None:
        return None
    ours = _ours(losses, bundle, budget)
    others = [losses.control(control, *_compiled(bundle, report, control)) for control in report.controls]
    choices = sorted([ours, *others], key=lambda choice: choice.resident_bytes)
    room = budget or parse_size(format_enough(ours.budget or 0))  # as people state it
    comparison = Comparison(ours, others, room, _unit(report), sum(task.items for task in report.tasks))
    remedy = heavy_losses(report) or _remedy(ours, report.recover, bundle)
    words = [comparison.words(), remedy, few_items(report)]
    return Advice(tuple(choices), " ".join(filter(None, words)))


def _ours(losses: Losses, bundle: Bundle, budget: int | None) -> Way:
    """The bundle, with all its pages in memory where they fit, else with those of its largest task."""
    always, every = footprint(bundle).total, len(bundle.pages) * bundle.page_bytes
    if budget is not None and always + every <= budget:
        return losses.bundle(every, always + every, 0)
    arena = max(len(bundle.pages_of(task)) for task in bundle.tasks) * bundle.page_bytes
    return losses.bundle(arena, always + arena, mean_switch_bytes(bundle))


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


def _remedy(ours: Way, recover: str | None, bundle: Bundle) -> str:
    """What to do about a bundle that has lost accuracy, beyond chance."""
    if recover is None or ours.interval is None or not ours.lost:
        return ""
    ways = ["'recover: finetune'"] * (recover != "finetune") + ["less sparsity"]
    if ENCODINGS[bundle.manifest.dtype].bits > ENCODINGS[DEFAULT].bits:
        times = bundle.block_bytes / block_bytes(bundle.manifest.block_shape, DEFAULT)
        ways.append(f"'dtype: {DEFAULT}', in which as many bytes hold {times:.1f} times the blocks")
    loses = f"At this sparsity {_RECOVERY.get(recover, recover)} loses more than chance explains"
    return f"{loses}: take {', or '.join(ways)}."


def mean_switch_bytes(bundle: Bundle) -> int:
    """What a switch loads, weighted by how often each one is made."""
    pages = [bundle.pages_of(task) for task in bundle.tasks]
    missing = [[len(np.setdiff1d(after, before, assume_unique=True)) for after in pages] for before in pages]
    return round(float((transitions_of(bundle.manifest).switch_rate() * missing).sum()) * bundle.page_bytes)


def _unit(report: CompileReport) -> str:
    kinds = {task.metric == LOWER_IS_BETTER for task in report.tasks}
    return {frozenset({True}): "% of perplexity", frozenset({False}): "points"}.get(frozenset(kinds), "points or %")
