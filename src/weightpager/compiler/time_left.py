"""How much longer a whole compile takes: the work of its stages is estimated before, its pace as it runs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from weightpager.bundle.report.compile_report import DENSE, MASK
from weightpager.compiler.controls import CHOICE, control_names, measuring, validation_data
from weightpager.compiler.data import TaskData
from weightpager.compiler.keep import FEW, HALVINGS, RANKED, validation
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.half_layers import units_of
from weightpager.compiler.selection.half_layers import ROWS
from weightpager.compiler.selection.trial_plan import (
    CHOICES,
    EXTENTS,
    LARGER,
    SPARSITIES,
    candidate_names,
    tries_sparsities,
)
from weightpager.compiler.task_file.file import TaskFile
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
        own = (self._share - self._first) * self._plan[self._stage]
        own_pace = (self._last - self._since) / own if own > 0 else pace
        return (1 - self._share) * self._plan[self._stage] * own_pace + later * pace


class WholeProgress:
    """Hands on what stages tell, and tells of the whole, once a second and once a plan is known."""

    def __init__(self, progress: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._progress = progress
        self._clock = clock
        self._began = self._told = clock()
        self._left: TimeLeft | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        self._progress(stage, done, total)
        if self._left is None:
            return
        self._left.told(stage, done, total)
        left, now = self._left.left(), self._clock()
        if left is not None and now - self._told >= 1:
            self._told = now
            self._progress(WHOLE, round(now - self._began), round(now - self._began + left))

    def expect(self, plan: Mapping[str, float]) -> None:
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
    file, spec = source.task_file, source.task_file.recover
    held_out = {name: _tokens(of_task.eval) for name, of_task in data.items()}
    item = fmean(_tokens(of_task.train) / len(of_task.train) for of_task in data.values()) if data else 0.0
    learnt = file.training.steps * file.training.batch * item * _LEARNT
    calibrated = sum(min(file.calibration.items, len(of_task.train)) for of_task in data.values()) * item
    step = spec.batch * item * (_LEARNT + _MASKED + (1.0 if spec.distillation else 0.0))

    recovery = {"refit": _REFITTED * calibrated} if spec.refits else {}
    if spec.method == "finetune":
        recovery["fine-tune"] = spec.steps * step
        if not adds and spec.trains_alone:
            recovery["private blocks"] = spec.private_steps * len(data) * step
    elif adds and file.trained_tasks:
        recovery["train own parameters"] = learnt

    tried = {} if adds else _tried(source.task_file, recovery)
    plan = {"train the dense model": learnt} if file.trained_tasks else {}
    plan |= {f"measure dense {name}": tokens for name, tokens in held_out.items()}
    plan |= {"calibrate": _LEARNT * calibrated} | _kept(source, data, item) | (tried or recovery)
    names = [] if adds else control_names(file, data)
    for control in names:
        if control == DENSE:
            plan["control dense: train on"] = file.recovery_steps * spec.batch * item * _LEARNT
            checked = {name: _tokens(of_task.eval) for name, of_task in (validation_data(data) or {}).items()}
            plan |= {measuring(choice, name, ()): tokens for choice in CHOICE for name, tokens in checked.items()}
        if control == MASK:
            plan |= {f"{MASK}: {stage}": work for stage, work in recovery.items()}
        plan |= {measuring(control, name, names): tokens for name, tokens in held_out.items()}
    plan["write"] = _WRITTEN
    return plan | {f"measure {name}": tokens for name, tokens in held_out.items()}


def _tried(task_file: TaskFile, recovery: Mapping[str, float]) -> dict[str, float]:
    """The work of candidates' recovery, each of which takes about as long; empty where none is tried."""
    names, extent = candidate_names(task_file), EXTENTS[task_file.effort]
    if not names or extent is None:
        first = f"sparsity {SPARSITIES[0]:g}"
        return {f"{first}: {stage}": work for stage, work in recovery.items()} if tries_sparsities(task_file) else {}
    trials = dict.fromkeys((f"try {name}" for name in (*names, LARGER)), extent.part)
    trials |= dict.fromkeys(CHOICES[: extent.whole], 1.0)
    return {f"{name}: {stage}": part * work for name, part in trials.items() for stage, work in recovery.items()}


def _kept(source: DenseModel, data: Mapping[str, TaskData], item: float) -> dict[str, float]:
    """The work of what ``keep`` tries, if it is stated; ``item`` is the mean of a row's tokens."""
    file = source.task_file
    if file.keep is None:
        return {}
    measured = {name: _tokens(validation(of_task, FEW).eval) for name, of_task in data.items()}
    if file.units.unit == "block" or math.isinf(file.alignment):
        return {"find the sparsity": (HALVINGS + 2) * sum(measured.values())}
    ranked = RANKED * ROWS * item / 2  # half of the layers are before what changes
    return {
        f"drop {file.units.unit}s: {name}": len(units_of(source)) * (ranked + each) for name, each in measured.items()
    }


def _tokens(items: Sequence[Item]) -> float:
    """Tokens of texts; an image counts as one."""
    return float(sum(max(1, item.length) for item in items))
