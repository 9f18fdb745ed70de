"""A way to serve all tasks of a bundle, and how sure it is what it loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from weightpager.bundle.report.compile_report import DENSE, LOWER_IS_BETTER, CompileReport, ControlScore
from weightpager.bundle.report.interval import Interval, mean_interval, turned


@dataclass(frozen=True)
class Choice:
    """A way to serve all tasks.

    Attributes:
        name: its name.
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

    def told_from(self, other: Choice) -> bool:
        """Whether the two losses differ by more than chance, by what each loses more than the bundle."""
        return self.gap[1] < other.gap[0] or other.gap[1] < self.gap[0]

    @property
    def lost(self) -> bool:
        """Whether it is worse than dense by more than chance explains."""
        return round(self.loss, 1) > 0 and (self.interval is None or self.interval[0] > 0)


@dataclass(frozen=True)
class Losses:
    """What the bundle and its controls lose, against the dense model that was trained as long as they were.

    Attributes:
        report: the bundle's report.
        dense: the dense model's metric, by task.
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

    def bundle(self, resident_bytes: int, budget: int, switch_bytes: int) -> Choice:
        """The bundle itself."""
        return Choice("this bundle", resident_bytes, budget, switch_bytes, self._mean(self._ours), self._interval())

    def control(self, control: ControlScore, budget: int | None, line: str) -> Choice:
        """One of its controls, which needs this budget and is compiled by this line of a task file."""
        scores = {task: control.scores[task] for task in self.dense}
        losses = self._losses(scores)
        return Choice(
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
