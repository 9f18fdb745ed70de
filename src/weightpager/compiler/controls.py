"""Controls: simpler ways to serve the same tasks, measured on the same data, that could make paging useless."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from weightpager.bundle.report import ControlScore
from weightpager.compiler.data import TaskData
from weightpager.compiler.low_rank import dense_part
from weightpager.compiler.masks import Masks, module_name
from weightpager.compiler.measure import EVAL_BATCH, Progress
from weightpager.compiler.quantise import INT4, INT8, Quantisation
from weightpager.compiler.source import PagedWeightInfo, Source
from weightpager.compiler.stored_blocks import StoredBlocks
from weightpager.compiler.task_weights import TaskWeights
from weightpager.evaluate import evaluate

Values = Callable[[str, PagedWeightInfo], Tensor]
"""(task, paged weight) → the values ``[out_features, in_features]`` that a control would hold."""


def quantised_controls(dense: Source, data: Mapping[str, TaskData], progress: Progress) -> list[ControlScore]:
    """The dense model with its paged weights in int8 and in int4: one copy that serves all tasks."""
    return [
        _control(name, dense, data, _quantised(dense, quantisation), _quantised_bytes(dense, quantisation), progress)
        for name, quantisation in (("int8", INT8), ("int4", INT4))
    ]


def shared_mask_control(
    weights: TaskWeights, masks: Masks, data: Mapping[str, TaskData], progress: Progress
) -> ControlScore:
    """One mask for all tasks, compiled and recovered as ours was."""

    def values(task: str, info: PagedWeightInfo) -> Tensor:
        kept = masks.masked(task, info, weights.weight(task, info))
        return kept + dense_part(weights.low_rank.get(task, {}), info.name)

    kept = sum(
        len(StoredBlocks.of(info.layer, masks.keep[info.name], weights.versions(info)).blocks) * info.grid.block.size
        for info in weights.source.paged
    )
    return _control("shared mask", weights.source, data, values, 2 * kept, progress)


def _control(
    name: str, source: Source, data: Mapping[str, TaskData], values: Values, size: int, progress: Progress
) -> ControlScore:
    scores = {}
    for task, of_task in data.items():
        model = source.models[task]
        with torch.no_grad():
            weights = {
                # Pages hold bfloat16, and so does what a control would keep unquantised.
                module_name(info, model.base_model_prefix): values(task, info).bfloat16().float()
                for info in source.paged
            }

        def run(model: Any = model, weights: dict[str, Tensor] = weights, **inputs: Tensor) -> Any:
            return functional_call(model, weights, kwargs=inputs)

        def told(done: int, total: int, task: str = task) -> None:
            progress(f"control {name}: {task}", done, total)

        scores[task] = evaluate(run, of_task.batches(of_task.eval, EVAL_BATCH), of_task.kind, told).value
    return ControlScore(name=name, resident_bytes=size, scores=scores)


def _quantised(dense: Source, quantisation: Quantisation) -> Values:
    return lambda task, info: quantisation.apply(dense.linear(task, info.name).weight.detach())


def _quantised_bytes(dense: Source, quantisation: Quantisation) -> int:
    weights = TaskWeights(dense)
    return round(
        sum(2 * _distinct(weights, info) * quantisation.fraction(info.grid.in_features) for info in dense.paged)
    )


def _distinct(weights: TaskWeights, info: PagedWeightInfo) -> float:
    """Elements of a paged weight, those that tasks have their own values for as often as there are values."""
    versions = np.sort(weights.versions(info), axis=1)
    copies = 1 + (np.diff(versions, axis=1) != 0).sum(1).mean()
    return float(copies) * info.grid.out_features * info.grid.in_features
