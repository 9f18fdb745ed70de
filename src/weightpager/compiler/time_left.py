"""How much longer a whole compile takes: the work of its stages is estimated before, its pace as it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from weightpager.bundle.report.compile_report import DENSE, MASK
from weightpager.compiler.controls import CHOICE, control_names, measuring, validation_data
from weightpager.compiler.data import TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.progress import Progress
from weightpager.task_data.held_out import Item

WHOLE = "whole compile"
"""The stage that all others are part of; its steps are seconds, as estimated."""


class TimeLeft:
    """Seconds that are left, by a plan and a clock.

    A stage's own pace counts for what is left of it, the mean pace so far for the stages behind it. Stages come in the
    order of the plan. When a stage tells of its first step, all stages before it count as done, even those that told
    nothing because a journal or a cache had them.
    """

    def __init__(self, plan: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        """Expect these stages, in their order, each with its work in any unit that all share."""
        self._plan = dict(plan)
        self._clock = clock
        self._stage = ""
        self._since = self._last = self._first = self._share = 0.0
        self._worked = self._seconds = 0.0

    def told(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over; stages that aren't in the plan tell nothing."""
        if stage not in self._plan:
            return
        now, share = self._clock(), done / max(1, total)
        if stage == self._stage and share >= self._share:
            self._worked += (share - self._share) * self._plan[stage]
            self._seconds += now - self._last
        else:
            self._stage, self._since, self._first = stage, now, share
        self._share, self._last = share, now

    def left(self) -> float | None:
        """Seconds from now on; None as long as nothing has been seen to take time."""
        if self._worked <= 0 or self._seconds <= 0:
            return None
        pace = self._seconds / self._worked
        stages = list(self._plan)
        later = sum(self._plan[name] for name in stages[stages.index(self._stage) + 1 :])
        return (1 - self._share) * self._plan[self._stage] * self._own_pace(pace) + later * pace

    def _own_pace(self, otherwise: float) -> float:
        """Seconds for a unit of the running stage's work."""
        work = (self._share - self._first) * self._plan[self._stage]
        return (self._last - self._since) / work if work > 0 else otherwise


class WholeProgress:
    """Hands on what stages tell, and tells of the whole, once a second and once a plan is known."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._began = self._told = clock()
        self._left: TimeLeft | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        """``done`` of ``total`` steps of a stage are over."""
        self._progress(stage, done, total)
        if self._left is None:
            return
        self._left.told(stage, done, total)
        left, now = self._left.left(), self._clock()
        if left is not None and now - self._told >= 1:
            self._told = now
            self._progress(WHOLE, round(now - self._began), round(now - self._began + left))

    def expect(self, plan: Mapping[str, float]) -> None:
        """Take the plan of the stages that will come."""
        self._left = TimeLeft(plan, self._clock)


_LEARNT = 3.0
"""A training step's work on a token, of which a third is the forward pass: the unit here."""

_REFITTED = 10.0
"""The work of least squares on a token: two forward passes, the sums, and the solution."""

_MASKED = 0.3
"""Masks on the weights of a step, as a share of a forward pass."""


_WRITTEN = 5000.0
"""The work of writing a bundle, its graph included, in tokens: about that of small encoders and decoders."""


def work_plan(source: DenseModel, data: Mapping[str, TaskData], *, adds: bool) -> dict[str, float]:
    """Stage, as progress names it, to work in tokens that go forward through the model; in the order of the stages."""
    return dict(_stages(source, data, adds))


def _stages(source: DenseModel, data: Mapping[str, TaskData], adds: bool) -> Iterator[tuple[str, float]]:
    file = source.task_file
    held_out = {name: _tokens(of_task.eval) for name, of_task in data.items()}
    learning = [data[name] for name in file.trained_tasks]
    if learning:
        yield "train the dense model", file.training.steps * _batch(learning, file.training.batch) * _LEARNT
    yield from ((f"measure dense {name}", tokens) for name, tokens in held_out.items())
    yield "calibrate", _LEARNT * _calibrated(source, data)
    yield from _recovery(source, data, adds, "")
    if not adds:
        yield from _controls(source, data, held_out)
    yield "write", _WRITTEN
    yield from ((f"measure {name}", tokens) for name, tokens in held_out.items())


def _controls(
    source: DenseModel, data: Mapping[str, TaskData], held_out: Mapping[str, float]
) -> Iterator[tuple[str, float]]:
    file, names = source.task_file, control_names(source.task_file, data)
    for control in names:
        if control == DENSE and (steps := file.recovery_steps):
            yield "control dense: train on", steps * _batch(list(data.values()), file.recover.batch) * _LEARNT
            yield from _choice(data)
        if control == MASK:
            yield from _recovery(source, data, False, f"{MASK}: ")
        yield from ((measuring(control, name, names), tokens) for name, tokens in held_out.items())


def _choice(data: Mapping[str, TaskData]) -> Iterator[tuple[str, float]]:
    """The measurements that choose a dense model."""
    validation = validation_data(data) or {}
    for name in CHOICE:
        yield from ((measuring(name, task, ()), _tokens(of_task.eval)) for task, of_task in validation.items())


def _recovery(source: DenseModel, data: Mapping[str, TaskData], adds: bool, prefix: str) -> Iterator[tuple[str, float]]:
    file, spec = source.task_file, source.task_file.recover
    step = _batch(list(data.values()), spec.batch) * (_LEARNT + _MASKED + (1.0 if spec.distillation else 0.0))
    if spec.refits:
        yield f"{prefix}refit", _REFITTED * _calibrated(source, data)
    if spec.method == "finetune":
        yield f"{prefix}fine-tune", spec.steps * step
    elif adds and file.trained_tasks:
        learning = [data[name] for name in file.trained_tasks]
        yield f"{prefix}train own parameters", file.training.steps * _batch(learning, file.training.batch) * _LEARNT
    if spec.method == "finetune" and not adds and spec.trains_alone:
        yield f"{prefix}private blocks", spec.private_steps * len(data) * step


def _calibrated(source: DenseModel, data: Mapping[str, TaskData]) -> float:
    items = source.task_file.calibration.items
    return sum(min(items, len(of_task.train)) * _mean(of_task.train) for of_task in data.values())


def _batch(learning: Sequence[TaskData], size: int) -> float:
    """Tokens of a batch, in the mean over tasks."""
    return sum(min(size, len(of_task.train)) * _mean(of_task.train) for of_task in learning) / len(learning)


def _mean(items: Sequence[Item]) -> float:
    return _tokens(items) / len(items)


def _tokens(items: Sequence[Item]) -> float:
    """Tokens of texts; an image counts as one."""
    return float(sum(max(1, item.length) for item in items))
