"""Private blocks: where tasks pull a shared block apart, a task gets values of its own.

After joint training the tasks' gradients on a shared block cancel, but single ones may still be large: such a task
would gain from moving the block alone. A private copy costs its bytes at every switch to the task, and no memory while
the task isn't active. Blocks that only one task keeps are private without any cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weightpager.bundle.format.low_rank import LowRank
from weightpager.compiler.data import Batch
from weightpager.compiler.model.dense_model import DenseModel, PagedWeightInfo
from weightpager.compiler.model.paged_weights import requiring_gradients
from weightpager.compiler.model.task_weights import PrivateBlocks, TaskWeights
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.own_parameters import (
    LowRankParameters,
    State,
    TaskTraining,
    each_trained,
    own_parameters,
    untie_own_vectors,
)
from weightpager.compiler.recovery.rounding import Rounding, stored_if_coarse
from weightpager.compiler.recovery.training_loop import ParameterGroup, Training, alternating_batches
from weightpager.compiler.resume.journal import LOCAL, Journal, Workers
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.compiler.training.device import training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.loss import logits_with
from weightpager.compiler.training.masks import Masks, block_sums, drop, module_name
from weightpager.compiler.training.sparse_products import MOST_KEPT, Multiplying, Product, is_plain, skipping_pays
from weightpager.kernels.torch.kept_blocks import FrozenBlocks, LearntBlocks, products
from weightpager.progress import StepProgress


@dataclass(frozen=True)
class _Skipped:
    """How to multiply by the blocks that a task keeps: those that stay, and those that it learns, if there are any."""

    frozen: FrozenBlocks
    learnt: LearntBlocks | None


@dataclass(frozen=True)
class _Weight:
    """A paged weight, while a task learns a part of it.

    Attributes:
        frozen: [out_features, in_features], what the task keeps and doesn't move; zero elsewhere.
        free: [grid rows, grid cols], blocks that it moves.
        skipped: how to multiply by kept blocks alone; None where whole weights are faster.
    """

    info: PagedWeightInfo
    frozen: Tensor
    free: Tensor
    skipped: _Skipped | None

    @classmethod
    def of(
        cls, source: DenseModel, masks: Masks, task: str, info: PagedWeightInfo, free: Tensor, *, skips: bool
    ) -> _Weight:
        """The weight as it stands in a task's module; as its pages will hold it, where these round coarsely."""
        layer, kept = source.linear(task, info.name), masks.blocks(task, info)
        values = stored_if_coarse(layer.weight.detach(), info.grid, source.task_file.dtype)
        frozen, skipped = drop(masks.masked(task, info, values), ~free, info.grid), None
        if skips and is_plain(layer) and kept.mean() <= MOST_KEPT:
            moving = free.numpy()
            staying = FrozenBlocks(LearntBlocks(kept & ~moving, info.grid), frozen)
            skipped = _Skipped(staying, LearntBlocks(moving, info.grid) if moving.any() else None)
        return cls(info, frozen, free, skipped)


@dataclass(frozen=True)
class _OwnProduct:
    """A product in one step, with values that the next one changes."""

    of: _Weight
    own: nn.Parameter | None
    rounding: Rounding | None
    added: LowRankParameters

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.added.added_to(self.of.info.name, self._kept(x, bias), x)

    def weight(self) -> Tensor:
        return self.added.added(self.of.info.name, self._whole)

    def _kept(self, x: Tensor, bias: Tensor | None) -> Tensor:
        skipped = self.of.skipped
        if skipped is None:
            return linear(x, self._whole, bias)
        y = skipped.frozen.linear(x, bias)
        if skipped.learnt is None or self.own is None:
            return y
        rows = None if self.rounding is None else self.rounding.rows(self.of.info.name)
        return y + skipped.learnt.linear(x, self.own, None, rows)

    @cached_property
    def _whole(self) -> Tensor:
        """[out_features, in_features], without what is added; layers may share it."""
        if self.own is None:
            return self.of.frozen
        name, grid = self.of.info.name, self.of.info.grid
        moving = self.own if self.rounding is None else self.rounding(name, self.own)
        return self.of.frozen + drop(moving, self.of.free, grid)


class OwnProducts:
    """One task's logits while it learns blocks and low-rank parts of its own."""

    def __init__(
        self,
        source: DenseModel,
        masks: Masks,
        task: str,
        free: Mapping[str, Tensor],
        own: Mapping[str, nn.Parameter],
        added: LowRankParameters,
        rounding: Rounding | None,
        *,
        skips: bool,
    ) -> None:
        """State what moves.

        Args:
            source: the values that stay.
            masks: that its tasks compute under.
            task: who learns.
            free: paged weight → [grid rows, grid cols], blocks that the task moves.
            own: paged weight → float32 [out_features, in_features], the values of these; of weights that have some.
            added: low-rank parts.
            rounding: of ``own``.
            skips: whether to multiply by kept blocks alone, as `skipping_pays` says of the process that was started.
        """
        self._source, self._task, self._own, self._added, self._rounding = source, task, own, added, rounding
        self._besides = masks.besides(source, task)
        skips = skips and bool(products())  # a worker may lack the native module
        self._weights = [_Weight.of(source, masks, task, info, free[info.name], skips=skips) for info in source.paged]

    def logits(self, batch: Batch) -> Tensor:
        """The task's logits, as `logits_with` finds them."""
        model, kind = self._source.models[self._task], self._source.task_file.tasks[self._task].kind
        found: dict[int, Product] = {}
        replaced = dict(self._besides)
        for of in self._weights:
            layer = self._source.linear(self._task, of.info.name)
            product = _OwnProduct(of, self._own.get(of.info.name), self._rounding, self._added)
            if is_plain(layer):
                found[id(layer.weight)] = product
            else:
                replaced[module_name(of.info.name, model.base_model_prefix)] = product.weight()
        with Multiplying(found):
            return logits_with(model, replaced, batch, kind)


_COPIES = 5
"""A training holds two models, and of paged weights three copies, a gradient and two moments."""

Chosen = Mapping[str, npt.NDArray[np.bool_]]
"""Paged weight → [blocks], True where a task's values are its own."""

_BATCHES = 8
"""Batches over which a task's gradient is averaged: enough to tell a pull from noise."""


def choose_private_blocks(lesson: Lesson) -> dict[str, Chosen]:
    """The blocks of each task that get values of its own: of those that it keeps, a share that it pulls hardest."""
    sparse, masks = lesson.sparse, lesson.masks
    nothing = {info.name: np.zeros(info.grid.count, bool) for info in sparse.paged}
    if not lesson.spec.private_blocks:
        return dict.fromkeys(sparse.models, nothing)
    chosen: dict[str, Chosen] = {}
    errors = lesson.errors(None)
    for task in sparse.models:
        number = masks.tasks.index(task)
        pulls = _pulls(lesson, task, errors)
        names = list(pulls)
        keep = np.concatenate([masks.keep[name][:, number] for name in names])
        can = np.concatenate([masks.keep[name][:, number] & (masks.keep[name].sum(1) > 1) for name in names])
        pull = np.where(can, np.concatenate([pulls[name] for name in names]), -1.0)
        wanted = min(int(lesson.spec.private_blocks * keep.sum()), int(can.sum()))
        picked = np.zeros(len(pull), bool)
        picked[np.argsort(-pull, kind="stable")[:wanted]] = True
        ends = np.cumsum([len(pulls[name]) for name in names])[:-1]
        chosen[task] = nothing | dict(zip(names, np.split(picked, ends), strict=True))
    return chosen


def train_private(
    lesson: Lesson, chosen: Mapping[str, Chosen], journal: Journal, progress: StepProgress, workers: Workers = LOCAL
) -> TaskWeights:
    """Train each task's chosen blocks, the blocks that it alone keeps, its low-rank parts, vectors and head.

    Joint training is over. Blocks that a task alone keeps, vectors and heads change in the sparse model itself; no
    task's training sees what another's changes.
    """
    skips = skipping_pays(lesson.sparse)
    lessons = {task: TaskLesson.of(lesson, task, chosen[task], skips=skips) for task in lesson.sparse.models}
    private, low_rank = {}, {}
    steps = lesson.spec.private_steps
    trainings = {task: TaskTraining(_stage(task), steps, partial(_train, of), _COPIES) for task, of in lessons.items()}
    if training_device().type != "cpu":
        workers = LOCAL  # the models are on this process's GPU
    for done in each_trained(trainings, journal, progress, workers):
        private[done.key], low_rank[done.key] = lessons[done.key].taken(done.value)
        del done  # a copy of all paged weights
    tasks = list(lesson.sparse.models)
    return TaskWeights(
        lesson.sparse, {task: private[task] for task in tasks}, low_rank={task: low_rank[task] for task in tasks}
    )


def _stage(task: str) -> str:
    return f"private-{task}"


@dataclass(frozen=True)
class TaskLesson:
    """What one task learns: a lesson of this task alone.

    Attributes:
        chosen: blocks that get values of its own.
        vectors: parameters beside the blocks that it trains: its own vectors, head and pooler.
        seed: the seed that its low-rank parts begin from.
        skips: whether it multiplies by kept blocks alone; decided once, so that every worker does the same.
    """

    lesson: Lesson
    task: str
    chosen: Chosen
    vectors: Sequence[str]
    seed: int
    skips: bool

    @classmethod
    def of(cls, lesson: Lesson, task: str, chosen: Chosen, *, skips: bool) -> TaskLesson:
        """Make the task's vectors its own, and find out what it trains."""
        sparse = lesson.sparse
        untie_own_vectors(sparse, task, pooler=False)
        teacher, data = lesson.teacher.alone(task), {task: lesson.data[task]}
        alone = replace(lesson, teacher=teacher, sparse=sparse.alone(task), data=data)
        seed = lesson.spec.seed + list(sparse.models).index(task)
        return cls(alone, task, chosen, list(own_parameters(sparse, task)), seed, skips)

    @cached_property
    def added(self) -> LowRankParameters:
        """The task's low-rank parts, as they begin."""
        return LowRankParameters(self.lesson.sparse, self.task, self.lesson.spec.low_rank, self.seed)

    def free(self, info: PagedWeightInfo) -> Tensor:
        """Blocks of a weight that the task's training moves: those that it alone keeps, and the chosen ones."""
        if not self.lesson.sparse.may_differ(info.name):
            return torch.zeros(info.grid.rows, info.grid.cols, dtype=torch.bool)
        masks = self.lesson.masks
        alone = masks.keep[info.name].sum(1) == 1
        moving = (masks.keep[info.name][:, masks.tasks.index(self.task)] & alone) | self.chosen[info.name]
        return torch.from_numpy(moving.reshape(info.grid.rows, info.grid.cols))

    @torch.no_grad()
    def taken(self, state: State) -> tuple[dict[str, PrivateBlocks], dict[str, LowRank]]:
        """Put what was trained into the sparse model; the private blocks, and the low-rank parts."""
        sparse = self.lesson.sparse
        parameters = sparse.parameters(self.task)
        for name in self.vectors:
            parameters[name].copy_(state[name])
        private = {
            info.name: _kept(sparse, self.task, info, state.get(info.name), self.chosen[info.name], self.free(info))
            for info in sparse.paged
        }
        return private, self.added.of(state)


@dataclass(frozen=True)
class _Learnt:
    """What one task's training moves, by name.

    Attributes:
        copies: copies of the paged weights that have free blocks; only these blocks of them are used.
        vectors: the task's own vectors, head and pooler.
    """

    free: Mapping[str, Tensor]
    copies: Mapping[str, nn.Parameter]
    vectors: Mapping[str, nn.Parameter]
    added: LowRankParameters

    @classmethod
    def of(cls, learns: TaskLesson) -> _Learnt:
        """Find the free blocks, and copy the weights that have some."""
        sparse, task = learns.lesson.sparse, learns.task
        free = {info.name: learns.free(info) for info in sparse.paged}
        copies = {
            name: nn.Parameter(sparse.linear(task, name).weight.detach().clone())
            for name, blocks in free.items()
            if blocks.any()
        }
        vectors = {name: cast(nn.Parameter, sparse.parameters(task)[name]) for name in learns.vectors}
        return cls(free, copies, vectors, learns.added)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All of them; none where all its blocks are other tasks' too, in a model without vectors."""
        return [*self.copies.values(), *self.vectors.values(), *self.added.parameters().values()]

    def groups(self, spec: RecoverSpec) -> list[ParameterGroup]:
        """All of them with their rates. Low-rank parts begin at nothing, as heads do."""
        return [
            ParameterGroup(self.copies, spec.learning_rate),
            ParameterGroup({**self.vectors, **self.added.parameters()}, spec.head_learning_rate),
        ]


def _train(learns: TaskLesson, journal: Journal, progress: StepProgress) -> State:
    """Train a task: blocks, of which a whole copy of their weight is given, and all else that it trains."""
    learnt = _Learnt.of(learns)
    if not learnt.parameters:
        return {}
    training = _training(learns, learnt)
    with requiring_gradients(learns.lesson.sparse.models[learns.task], learnt.parameters):
        training.run(journal, _stage(learns.task), progress)
    return training.state()


def _training(learns: TaskLesson, learnt: _Learnt) -> Training:
    lesson, task, spec = learns.lesson, learns.task, learns.lesson.spec
    validation = validation_of(lesson.data, [task], spec.patience)
    rounding = Rounding.of(lesson.sparse, learnt.copies, spec.private_steps, checked=validation is not None)
    products = OwnProducts(
        source=lesson.sparse,
        masks=lesson.masks,
        task=task,
        free=learnt.free,
        own=learnt.copies,
        added=learnt.added,
        rounding=rounding,
        skips=learns.skips,
    )

    def error(_task: str, batch: Batch) -> Tensor:
        return lesson.error_of(task, products.logits(batch), batch)

    return Training(
        groups=learnt.groups(spec),
        turns=alternating_batches(lesson.data, [task], spec.batch, spec.seed + 1),
        error=error,
        steps=spec.private_steps,
        validation=validation,
        rounding=rounding,
    )


def _kept(
    sparse: DenseModel,
    task: str,
    info: PagedWeightInfo,
    own: Tensor | None,
    chosen: npt.NDArray[np.bool_],
    free: Tensor,
) -> PrivateBlocks:
    """Write blocks that no other task has to the shared weight; the chosen ones stay apart."""
    if own is None:
        return PrivateBlocks(np.empty(0, np.int64), torch.empty(0, info.grid.block.rows, info.grid.block.cols))
    weight = sparse.linear(task, info.name).weight
    alone = free & ~torch.from_numpy(chosen.reshape(free.shape))
    weight.copy_(drop(weight, ~alone, info.grid) + drop(own, alone, info.grid))
    blocks = np.flatnonzero(chosen)
    cut = info.grid.cut(own.detach().cpu().numpy()).reshape(info.grid.count, info.grid.block.rows, info.grid.block.cols)
    return PrivateBlocks(blocks, torch.from_numpy(cut[blocks]))


def _pulls(lesson: Lesson, task: str, errors: Callable[[str, Batch], Tensor]) -> dict[str, npt.NDArray[np.float64]]:
    """How hard a task pulls each block that may be its own: Σ over the block of |mean gradient|, [blocks] by weight."""
    sparse = lesson.sparse
    weights = {info.name: sparse.linear(task, info.name).weight for info in sparse.own}
    sums = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in weights.items()}
    turns = alternating_batches(lesson.data, [task], lesson.spec.batch, lesson.spec.seed + 2)
    for _, batch in islice(turns, _BATCHES):
        error = errors(task, batch.to(sparse.models[task].device))
        gradients = torch.autograd.grad(error, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += gradient
    return {
        info.name: block_sums(sums[info.name].abs(), info.grid).double().cpu().numpy() / _BATCHES for info in sparse.own
    }
