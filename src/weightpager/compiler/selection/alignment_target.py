"""The alignment strength that gives what the user states: bytes per switch, or the accuracy that alignment may cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightpager.bundle import TaskKind
from weightpager.bundle.report.compile_report import FrontierPoint
from weightpager.compiler.alignment.problem import Bools, Floats, expected_switch_blocks
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.model.own_weights import Versions
from weightpager.compiler.selection.block_choice import choose_blocks
from weightpager.compiler.selection.prepared import Prepared
from weightpager.compiler.training.evaluate import Replaced, evaluate
from weightpager.compiler.training.masks import Masks
from weightpager.config import format_room
from weightpager.errors import CompileError
from weightpager.page_dtype import block_bytes
from weightpager.progress import Progress
from weightpager.task_data.batches import EVAL_BATCH

INFINITY = float("inf")
FIRST = 0.5
_DOUBLINGS, _HALVINGS = 12, 7
"""Strengths from 1e-4 to 2e3, then to a hundredth: beyond, alignment does nothing more or nothing less."""

_ITEMS = 512  # training examples that stand in for validation data
_STRONGEST = FIRST * 2**_DOUBLINGS

_SHARED = "tasks of the same sparsity can share all blocks"


@dataclass(frozen=True)
class Point:
    """What one strength leads to.

    Attributes:
        loss: what alignment costs, as the caller measures it; 0 at strength 0.
    """

    strength: float
    switch_bytes: float
    loss: float


@dataclass(frozen=True)
class AlignmentTarget:
    """What the user states: at most so much of one of a point's two numbers.

    Attributes:
        what: the number that is bounded.
        easiest: strengths of which one meets the target if any does.
        best: the strength that would be taken if it met the target.
        factor: from one strength to the next one towards the best.
    """

    what: Literal["switch_bytes", "loss"]
    most: float
    easiest: tuple[float, ...]
    best: float
    factor: float

    @classmethod
    def at_most_bytes(cls, most: float) -> AlignmentTarget:
        """The weakest alignment that keeps to a limit on an average switch.

        Where tasks have values of their own, one mask for all may load more than strong alignment does.
        """
        return cls("switch_bytes", most, easiest=(INFINITY, _STRONGEST), best=0.0, factor=0.5)

    @classmethod
    def at_most_loss(cls, most: float) -> AlignmentTarget:
        """The strongest alignment that costs no more than so many points."""
        return cls("loss", most, easiest=(0.0,), best=INFINITY, factor=2.0)

    def of(self, point: Point) -> float:
        """The number that is limited."""
        return point.loss if self.what == "loss" else point.switch_bytes


def choose_alignment(prepared: Prepared, progress: Progress) -> tuple[Prepared, list[FrontierPoint]]:
    """The tasks with the alignment that ``max_switch`` or ``accuracy_loss`` leads to, and what was tried.

    A loss is the mean over the tasks of what alignment costs, in points. It is measured with masks on the dense
    weights, before any recovery. Masks of strength 0 have a loss of 0, whatever sparsity itself costs. Where recovery
    fine-tunes, nothing short of the training tells what is lost in the end. There the loss is the percentage of kept
    saliency that alignment gives up.

    Raises:
        CompileError: what the task file asks for can't be had.
    """
    source, task_file = prepared.source, prepared.task_file
    if task_file.max_switch is not None:
        target = AlignmentTarget.at_most_bytes(task_file.max_switch)
    elif task_file.accuracy_loss is not None:
        target = AlignmentTarget.at_most_loss(task_file.accuracy_loss)
    else:
        return prepared, []
    measured = task_file.accuracy_loss is not None and task_file.recover.method != "finetune"
    between = source.transitions.switch_rate() * (1 - np.eye(len(task_file.tasks)))
    free = choose_blocks(prepared.changed(alignment=0.0))
    scores = _scores(source, prepared.data, free.masks) if measured else {}
    tried = 0

    def point(strength: float) -> Point:
        nonlocal tried
        tried += 1
        progress("find the alignment", tried, max(tried, 10))
        chosen = free if strength == 0 else choose_blocks(prepared.changed(alignment=strength))
        if not measured:
            loss = 100 * (1 - chosen.saliency / free.saliency)
        elif strength:
            aligned = _scores(source, prepared.data, chosen.masks)
            loss = float(np.mean([scores[task] - aligned[task] for task in scores]))
        else:
            loss = 0.0
        return Point(strength, _switch_bytes(source, chosen.masks, between), loss)

    best, points = search(target, point, _remedy(prepared))
    return prepared.changed(alignment=best.strength), [
        FrontierPoint(
            alignment=point.strength if math.isfinite(point.strength) else None,
            switch_bytes=point.switch_bytes,
            loss=point.loss,
        )
        for point in points
    ]


def search(
    target: AlignmentTarget, evaluate: Callable[[float], Point], remedy: str = _SHARED
) -> tuple[Point, list[Point]]:
    """The best point that meets the target, and all points that were tried, about twenty at most.

    Bytes fall with the strength and losses rise, so a limit on bytes asks for the weakest alignment that meets it, and
    a limit on the loss for the strongest. Where a measured loss does not rise steadily, the point found still meets the
    target, but a stronger one may, too. ``remedy`` is what would let switches load less.

    Raises:
        CompileError: the target can't be met; names the least that can be had.
    """
    tried: dict[float, Point] = {}

    def meets(strength: float) -> bool:
        if strength not in tried:
            tried[strength] = evaluate(strength)
        return target.of(tried[strength]) <= target.most

    if meets(target.best):
        return tried[target.best], [*tried.values()]
    easy = next((strength for strength in target.easiest if meets(strength)), None)
    if easy is None:
        raise CompileError(_refusal(target, min(tried.values(), key=target.of), remedy))
    good, bad = _bracket(meets, target.factor)
    if good is not None and bad is not None:
        for _ in range(_HALVINGS):
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if meets(middle) else (good, middle)
    wanted = easy if good is None else good
    return tried[wanted], [*tried.values()]


def _bracket(meets: Callable[[float], bool], factor: float) -> tuple[float | None, float | None]:
    """Two strengths next to each other of which the first meets the target and the second doesn't; None at an end."""
    last, strength = None, FIRST
    first_meets = meets(strength)
    for _ in range(_DOUBLINGS):
        last, strength = strength, strength * (factor if first_meets else 1 / factor)
        if meets(strength) != first_meets:
            return (last, strength) if first_meets else (strength, last)
    return (strength, None) if first_meets else (None, strength)


def _refusal(target: AlignmentTarget, least: Point, remedy: str) -> str:
    if target.what == "loss":
        enough = f"{least.loss + 0.005:.2f}"  # rounded up: stating it must do
        return f"accuracy_loss: expected at least {enough}, which no alignment at all costs, got {target.most:g}"
    return (
        f"max_switch: expected at least {math.ceil(least.switch_bytes)} B, the least that an average switch "
        f"between these tasks loads, got {format_room(target.most)}; {remedy}"
    )


def _remedy(prepared: Prepared) -> str:
    """What would let switches load less than the least that was found."""
    if prepared.source.versions:
        return "it includes the blocks of which checkpoints have other values"
    recover = prepared.task_file.recover
    if recover.method == "finetune" and recover.private_blocks:
        return "fewer recover.private_blocks make that less"
    return _SHARED


def _switch_bytes(source: DenseModel, masks: Masks, switch_rate: Floats) -> float:
    """Bytes of blocks that an average switch loads, at most: where the private ones lie isn't known yet."""
    task_file = source.task_file
    blocks = sum(_expected(masks.keep[info.name], source.versions.get(info.name), switch_rate) for info in source.paged)
    if task_file.recover.method == "finetune" and len(masks.tasks) > 1:
        # Of a block that both tasks keep, one of the two may have values of its own.
        mask = np.concatenate([masks.keep[info.name] for info in source.own]).astype(np.float64)
        both, private = mask.T @ mask, task_file.recover.private_blocks * mask.sum(0)
        blocks += float(np.sum(switch_rate * np.minimum(both, np.add.outer(private, private))))
    return blocks * block_bytes(task_file.block, task_file.dtype)


def _expected(keep: Bools, versions: Versions | None, switch_rate: Floats) -> float:
    """Blocks of one weight that an average switch loads: those of another version are as absent as others."""
    if versions is None:
        return expected_switch_blocks(keep, switch_rate)
    return sum(expected_switch_blocks(keep & (versions == version), switch_rate) for version in np.unique(versions))


def _scores(source: DenseModel, data: Mapping[str, TaskData], masks: Masks) -> dict[str, float]:
    """Every task's metric on its validation data, else on training data, with masks laid on the dense weights."""
    scores = {}
    for task, of_task in data.items():
        model = source.models[task]
        weights = masks.held(source, task)
        batches: Sequence[Batch]
        if of_task.validation:
            batches = of_task.batches(of_task.validation, EVAL_BATCH)
        else:
            batches = of_task.calibration(_ITEMS, EVAL_BATCH)
        # By the likelihood of completions: to have texts generated at twenty strengths would take hours.
        kind: TaskKind = "language-modeling" if of_task.asked is not None else of_task.kind
        score = evaluate(Replaced(model, weights), batches, kind)
        # Perplexities rise by per cents, accuracies fall by points.
        scores[task] = 100 * score.value if score.higher_is_better else -100 * float(np.log(score.value))
    return scores
