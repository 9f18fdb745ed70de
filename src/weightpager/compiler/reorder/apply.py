"""Function-preserving permutations that gather weights which matter to the same tasks into the same blocks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from weightpager.bundle.format.placement import NOTHING_MOVED, Permutations
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo, parameters
from weightpager.compiler.reorder.dimensions import RESIDUAL, Dimension, Indices, dimensions
from weightpager.compiler.reorder.search import Elements, Floats, Read, gather
from weightpager.compiler.selection.saliency import Calibration
from weightpager.compiler.training.evaluate import evaluating
from weightpager.errors import CompileError

_log = logging.getLogger(__name__)

_TOLERANCE = 1e-3
"""What a logit may be off, as a share of the largest one: far above float32's rounding in another order, far below what
a wrong table does."""


def reorder(
    source: DenseModel,
    calibrations: Mapping[str, Calibration],
    probes: Mapping[str, Batch],
    densities: Mapping[str, float],
) -> Permutations:
    """Permute the modules of ``source`` in place so that blocks hold weights that the same tasks need; what was done.

    An architecture that isn't known stays as it is, and so does one whose answers would change: the logits of each
    task's batch in ``probes``. ``densities`` are the share of the blocks that each task will keep.
    """
    known = dimensions(source.models)
    if not known:
        _log.warning("%s: its tensors are not in the table of permutable dimensions; not reordered", source.path)
        return NOTHING_MOVED
    permutations = choose_permutations(source, known, calibrations, densities)
    if not _keeps_answers(source, permutations, probes):
        _log.warning("%s: permuted, it gives other answers; not reordered", source.path)
        return NOTHING_MOVED
    return permutations


def choose_permutations(
    source: DenseModel,
    known: Sequence[Dimension],
    calibrations: Mapping[str, Calibration],
    densities: Mapping[str, float],
) -> Permutations:
    """The permutations that gather most saliency into the blocks that tasks keep; nothing is changed yet.

    A picture tower has blocks of its own density, and none of its dimensions runs on into the language model.
    """
    of_tower = {task: 1.0 - source.task_file.tower_sparsity_of(task) for task in densities}
    steps: list[tuple[Dimension, Indices]] = []
    for paged, kept in ((source.tower, of_tower), (source.language, densities)):
        grids = {f"{info.name}.weight": info.grid for info in paged}
        elements = Elements(_comparable(calibrations, paged), len(calibrations), grids)
        here = [dimension for dimension in known if any(part.tensor in grids for part in dimension.parts)]
        if here:
            steps += gather(elements, here, np.array([kept[task] for task in calibrations]))
    return composed(steps)


def _comparable(calibrations: Mapping[str, Calibration], paged: Sequence[PagedWeightInfo]) -> Read:
    """Tasks' saliency of elements, as shares of what each has of all these weights."""
    tasks, names = list(calibrations), {f"{info.name}.weight": info.name for info in paged}

    def read(tensor: str, task: int) -> Floats:
        return np.asarray(calibrations[tasks[task]][names[tensor]].numpy(), np.float32)

    totals = [sum(float(read(tensor, task).sum(dtype=np.float64)) for tensor in names) for task in range(len(tasks))]

    def comparable(tensor: str, task: int) -> Floats:
        return np.asarray(read(tensor, task) * np.float32(1 / max(1e-30, totals[task])))

    return comparable


def composed(steps: Sequence[tuple[Dimension, Indices]]) -> Permutations:
    """Orders of dimensions, applied one after the other, as orders of the tensors' axes."""
    orders: dict[tuple[str, int], Indices] = {}
    for dimension, order in steps:
        for part in dimension.parts:
            spread, key = part.spread(order), (part.tensor, part.axis)
            orders[key] = orders[key][spread] if key in orders else spread
    return Permutations({key: order for key, order in orders.items() if (np.diff(order) != 1).any()})


def apply(models: Mapping[str, PreTrainedModel], permutations: Permutations) -> None:
    """Permute every tensor of tasks' modules in place, shared ones once. `Permutations.inverse` takes it back."""
    seen: set[int] = set()
    for task, model in models.items():
        for name, tensor in parameters(model).items():
            if id(tensor) not in seen:
                seen.add(id(tensor))
                tensor.data.copy_(permuted(tensor.data, permutations.of(task, name)))


def for_new_tasks(permutations: Permutations, models: Mapping[str, PreTrainedModel]) -> Permutations:
    """The orders that a permuted base asks of what other tasks add to it and that reads its residual stream.

    That is their heads, and a pooler if no task of the base has one.

    Raises:
        CompileError: how a head reads the base isn't known.
    """
    unknown = [task for task, model in models.items() if not dimensions({task: model})]
    if permutations.orders and unknown:
        raise CompileError(
            f"tasks.{unknown[0]}: expected a kind of model that can be reordered as the base is, found "
            f"{type(models[unknown[0]]).__name__}; compile the base again with 'reorder: false'"
        )
    parts = [part for found in dimensions(models) if found.name == RESIDUAL for part in found.parts]
    at = [(part.tensor, part.axis) for part in parts]
    known = next((permutations.orders[key] for key in at if key in permutations.orders), None)
    if known is None:
        return NOTHING_MOVED
    return Permutations({key: known for key in at if key not in permutations.orders})


def permuted(tensor: Tensor, orders: Mapping[int, Indices]) -> Tensor:
    """A tensor with these axes in these orders."""
    for axis, order in orders.items():
        tensor = tensor.index_select(axis, torch.from_numpy(order))
    return tensor


def permuted_calibration(permutations: Permutations, calibration: Calibration) -> Iterator[tuple[str, Tensor]]:
    """What calibration would have measured on the permuted model, weight by weight."""
    for name, value in calibration.items():
        yield name, permuted(value, permutations.of("", f"{name}.weight"))


def _keeps_answers(source: DenseModel, permutations: Permutations, probes: Mapping[str, Batch]) -> bool:
    """Apply the permutations; take them back if any logits change beyond rounding."""
    before = _answers(source, probes)
    apply(source.models, permutations)
    after = _answers(source, probes)
    if all(_close(before[task], after[task]) for task in probes):
        return True
    apply(source.models, permutations.inverse())
    return False


def _answers(source: DenseModel, probes: Mapping[str, Batch]) -> dict[str, Tensor]:
    answers = {}
    for task, batch in probes.items():
        with evaluating(source.models[task]), torch.inference_mode():
            answers[task] = source.scratch.hold(source.models[task](**batch.inputs).logits)
    return answers


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _TOLERANCE * a.abs().max())
