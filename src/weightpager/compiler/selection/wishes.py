"""From the task file's ``max_switch`` or ``accuracy_loss`` to an alignment strength, on a prepared model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from weightpager.answers.evaluate import evaluate
from weightpager.compiler.alignment.problem import Bools, Floats, expected_switch_blocks
from weightpager.compiler.data.splits import EVAL_BATCH, TaskData
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.masks import Masks
from weightpager.compiler.model.own_weights import Versions
from weightpager.compiler.selection.frontier import Point, Wish, search
from weightpager.page_dtype import block_bytes

_ITEMS = 512  # training examples that stand in for validation data


@dataclass(frozen=True)
class Choice:
    """What one strength chose.

    Attributes:
        masks: of all tasks.
        saliency: that they keep, relative to an average block of each task.
    """

    masks: Masks
    saliency: float


def wish_of(source: Source) -> Wish | None:
    """What the task file asks for; None if it states a strength."""
    task_file = source.task_file
    if task_file.max_switch is not None:
        return Wish("switch_bytes", task_file.max_switch)
    return None if task_file.accuracy_loss is None else Wish("loss", task_file.accuracy_loss)


def fulfil(
    wish: Wish,
    source: Source,
    data: Mapping[str, TaskData],
    switch_rate: Floats,
    choose: Callable[[float], Choice],
    progress: Callable[[str, int, int], None],
) -> tuple[Point, list[Point]]:
    """The point to compile with, and those tried; ``choose`` aligns with a strength.

    A loss is the mean over the tasks of what alignment costs, in points, on the dense weights without any recovery and
    without the masks of strength 0 losing anything. Fine-tuning wins most of that back, and nothing short of it tells
    how much; there the loss is the percentage of kept saliency that alignment gives up.

    Raises:
        CompileError: the wish can't be met.
    """
    trains = source.task_file.recover.method == "finetune"
    measured = wish.what == "loss" and not trains
    free = choose(0.0)
    scores = _scores(source, data, free.masks) if measured else {}
    tried = 0

    def point(strength: float) -> Point:
        nonlocal tried
        tried += 1
        progress("find the alignment", tried, max(tried, 10))
        choice = free if strength == 0 else choose(strength)
        if measured:
            loss = _points(scores, _scores(source, data, choice.masks)) if strength else 0.0
        else:
            loss = 100 * (1 - choice.saliency / free.saliency)
        return Point(strength, _switch_bytes(source, choice.masks, switch_rate), loss)

    return search(wish, point)


def _switch_bytes(source: Source, masks: Masks, switch_rate: Floats) -> float:
    """Bytes of blocks that an average switch loads, at most: where the private ones lie isn't known yet."""
    task_file = source.task_file
    keep = np.concatenate([masks.keep[info.name] for info in source.paged])
    blocks = sum(_expected(masks.keep[info.name], source.versions.get(info.name), switch_rate) for info in source.paged)
    if task_file.recover.method == "finetune" and len(masks.tasks) > 1:
        blocks += _expected_private(keep, task_file.recover.private_blocks, switch_rate)
    return blocks * block_bytes(task_file.block, task_file.dtype)


def _expected(keep: Bools, versions: Versions | None, switch_rate: Floats) -> float:
    """Blocks of one weight that an average switch loads: those of another version are as absent as others."""
    if versions is None:
        return expected_switch_blocks(keep, switch_rate)
    return sum(expected_switch_blocks(keep & (versions == version), switch_rate) for version in np.unique(versions))


def _expected_private(keep: Bools, share: float, switch_rate: Floats) -> float:
    """Most blocks that an average switch loads though both tasks keep them: one of the two has values of its own."""
    mask = keep.astype(np.float64)
    both, own = mask.T @ mask, share * mask.sum(0)
    return float(np.sum(switch_rate * np.minimum(both, np.add.outer(own, own))))


def _scores(source: Source, data: Mapping[str, TaskData], masks: Masks) -> dict[str, float]:
    """Every task's metric on its validation data, else on training data, with masks laid on the dense weights."""
    found = {}
    for task, of_task in data.items():
        model = source.models[task]
        with torch.no_grad():
            weights = masks.parameters(source, task, source.paged)

        def run(model: Any = model, weights: dict[str, Tensor] = weights, **inputs: Tensor) -> Any:
            return functional_call(model, weights, kwargs=inputs)

        if of_task.validation:
            batches = of_task.batches(of_task.validation, EVAL_BATCH)
        else:
            batches = of_task.calibration(_ITEMS, EVAL_BATCH)
        score = evaluate(run, batches, of_task.kind)
        # Perplexities rise by per cents, accuracies fall by points.
        found[task] = 100 * score.value if score.higher_is_better else -100 * float(np.log(score.value))
    return found


def _points(free: Mapping[str, float], aligned: Mapping[str, float]) -> float:
    return float(np.mean([free[task] - aligned[task] for task in free]))
