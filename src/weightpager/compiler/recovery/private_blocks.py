"""Private blocks: where tasks pull a shared block apart, a task gets values of its own.

After joint training the tasks' gradients on a shared block cancel, but single ones may still be large: such a task
would gain from moving the block alone. A private copy costs its bytes at every switch to the task, and no memory while
the task isn't active. Blocks that only one task keeps are private without any cost.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from weightpager.backends.torch.model.architecture import BASE
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.model.dense_model import PagedWeightInfo, Source, parameters
from weightpager.compiler.model.task_weights import PrivateBlocks, TaskWeights
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.low_rank import LowRankParameters
from weightpager.compiler.recovery.own_parameters import separate
from weightpager.compiler.recovery.rounding import Rounding, stored_if_coarse
from weightpager.compiler.recovery.training_loop import ParameterGroup, Training, in_turn
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.masks import block_sums, drop, logits_with, module_name
from weightpager.progress import Steps

Chosen = Mapping[str, npt.NDArray[np.bool_]]
"""Paged weight → [blocks], True where a task's values are its own."""

_BATCHES = 8
"""Batches over which a task's gradient is averaged: enough to tell a pull from noise."""


def choose(lesson: Lesson) -> dict[str, Chosen]:
    """The blocks of each task that get values of its own: of those that it keeps, a share that it pulls hardest."""
    sparse, masks = lesson.sparse, lesson.masks
    chosen: dict[str, Chosen] = {}
    for task in sparse.models:
        number = masks.tasks.index(task)
        pulls = _pulls(lesson, task)
        names = list(pulls)
        keep = np.concatenate([masks.keep[name][:, number] for name in names])
        can = np.concatenate([masks.keep[name][:, number] & (masks.keep[name].sum(1) > 1) for name in names])
        pull = np.where(can, np.concatenate([pulls[name] for name in names]), -1.0)
        wanted = min(int(lesson.spec.private_blocks * keep.sum()), int(can.sum()))
        own = np.zeros(len(pull), bool)
        own[np.argsort(-pull, kind="stable")[:wanted]] = True
        ends = np.cumsum([len(pulls[name]) for name in names])[:-1]
        chosen[task] = dict(zip(names, np.split(own, ends), strict=True))
    return chosen


def train_private(lesson: Lesson, chosen: Mapping[str, Chosen], journal: Journal, progress: Steps) -> TaskWeights:
    """Train each task's chosen blocks, the blocks that it alone keeps, its low-rank parts, vectors and head.

    Blocks that a task alone keeps, vectors and heads change in the sparse model itself.

    Args:
        lesson: after joint training.
        chosen: by `choose`.
        journal: where the training stands.
        progress: told (steps done, steps in all).

    Raises:
        CompileError: the loss is no longer finite.
    """
    sparse, spec = lesson.sparse, lesson.spec
    private, low_rank = {}, {}
    total = spec.private_steps * len(sparse.models)
    for number, task in enumerate(sparse.models):

        def told(done: int, _total: int, before: int = number * spec.private_steps) -> None:
            progress(before + done, total)

        added = LowRankParameters(sparse, task, spec.low_rank, spec.seed + number)
        private[task] = _train_task(lesson, task, chosen[task], added, journal, told)
        low_rank[task] = added.trained()
    return TaskWeights(sparse, private, low_rank=low_rank)


def _train_task(
    lesson: Lesson, task: str, chosen: Chosen, added: LowRankParameters, journal: Journal, progress: Steps
) -> dict[str, PrivateBlocks]:
    sparse, masks, spec = lesson.sparse, lesson.masks, lesson.spec
    model, number = sparse.models[task], masks.tasks.index(task)
    own: dict[str, nn.Parameter] = {}  # a whole copy of each weight, of which only the free blocks are used
    frozen: dict[str, Tensor] = {}
    free: dict[str, Tensor] = {}
    for info in sparse.paged:
        weight = sparse.linear(task, info.name).weight.detach()
        alone = masks.keep[info.name].sum(1) == 1
        moving = (masks.keep[info.name][:, number] & alone) | chosen[info.name]
        free[info.name] = torch.from_numpy(moving.reshape(info.grid.rows, info.grid.cols))
        own[info.name] = nn.Parameter(weight.clone())
        kept = stored_if_coarse(weight, info.grid, sparse.task_file.dtype)
        frozen[info.name] = drop(masks.masked(task, info, kept), ~free[info.name], info.grid)
    rounding, routes = Rounding.of(sparse, own, spec.private_steps), masks.routes(sparse, task)

    def error(_task: str, batch: Batch) -> Tensor:
        weights = dict(routes)
        for info in sparse.paged:
            moving = own[info.name] if rounding is None else rounding(info.name, own[info.name])
            whole = frozen[info.name] + drop(moving, free[info.name], info.grid)
            weights[module_name(info, model.base_model_prefix)] = added.added(info.name, whole)
        return lesson.error_of(task, logits_with(model, weights, batch, lesson.data[task].kind), batch)

    separate(model, lambda _name, parameter: parameter.ndim == 1)
    groups = [
        ParameterGroup(own, spec.learning_rate),
        # Low-rank parts begin at nothing, as heads do.
        ParameterGroup({**_own_parameters(sparse, task), **added.parameters()}, spec.head_learning_rate),
    ]
    turns = in_turn(lesson.data, [task], spec.batch, spec.seed + 1)
    watched = validation_of(lesson.data, [task], spec.patience)
    training = Training(groups, turns, error, spec.private_steps, watched, spec.patience, rounding)
    training.run(journal, f"private-{task}", progress)
    with torch.no_grad():
        return {
            info.name: _kept(sparse, task, info, own[info.name], chosen[info.name], free[info.name])
            for info in sparse.paged
        }


def _own_parameters(sparse: Source, task: str) -> dict[str, nn.Parameter]:
    """The base's vectors, the head, and a pooler that was trained for it alone; a language model's head is shared."""
    spec = sparse.task_file.tasks[task]
    others = {id(t) for other, model in sparse.models.items() if other != task for t in parameters(model).values()}

    def is_own(name: str, tensor: Tensor) -> bool:
        if not name.startswith(BASE):
            return spec.labelled
        return tensor.ndim == 1 or ("pooler" in name and spec.trained and id(tensor) not in others)

    return {
        name: tensor
        for name, tensor in parameters(sparse.models[task]).items()
        if isinstance(tensor, nn.Parameter) and is_own(name, tensor)
    }


def _kept(
    sparse: Source, task: str, info: PagedWeightInfo, own: Tensor, chosen: npt.NDArray[np.bool_], free: Tensor
) -> PrivateBlocks:
    """Write blocks that no other task has to the shared weight; the chosen ones stay apart."""
    weight = sparse.linear(task, info.name).weight
    alone = free & ~torch.from_numpy(chosen.reshape(free.shape))
    weight.copy_(drop(weight, ~alone, info.grid) + drop(own, alone, info.grid))
    blocks = np.flatnonzero(chosen)
    cut = info.grid.cut(own.detach().cpu().numpy()).reshape(info.grid.count, info.grid.block.rows, info.grid.block.cols)
    return PrivateBlocks(blocks, torch.from_numpy(cut[blocks]))


def _pulls(lesson: Lesson, task: str) -> dict[str, npt.NDArray[np.float64]]:
    """How hard a task pulls each block: Σ over the block of |mean gradient|, [blocks] by paged weight."""
    sparse = lesson.sparse
    weights = {info.name: sparse.linear(task, info.name).weight for info in sparse.paged}
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    turns = in_turn(lesson.data, [task], lesson.spec.batch, lesson.spec.seed + 2)
    for _, batch in islice(turns, _BATCHES):
        error = lesson.error(task, batch.to(sparse.models[task].device))
        gradients = torch.autograd.grad(error, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient
    return {
        info.name: block_sums(sums[info.name].abs(), info.grid).double().cpu().numpy() / _BATCHES
        for info in sparse.paged
    }
