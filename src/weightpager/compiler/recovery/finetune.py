"""Masked joint training: values that all tasks share, each task seeing only the blocks that it keeps.

A step takes one task's batch through that task's masked weights, tasks in turn: a shared block learns from all tasks
that keep it. The dense model teaches: its answers are part of the loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from weightpager.backends.torch.architecture import BASE
from weightpager.bundle.format.picture_tower import TOWER
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.recovery.training_loop import ParameterGroup, Training, alternating_batches
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.sections import RecoverSpec, TrainingSpec
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.loss import loss, masked_logits
from weightpager.compiler.training.masks import Masks, Rounded
from weightpager.compiler.training.sparse_products import SparseProducts
from weightpager.page_dtype import Encoding
from weightpager.progress import StepProgress, silent

_log = logging.getLogger(__name__)


def train(
    source: DenseModel, data: Mapping[str, TaskData], progress: StepProgress = silent, journal: Journal | None = None
) -> tuple[str, ...]:
    """Train the base and the heads of `trained_tasks` in place, a step per task in turn; returns those tasks.

    Dropout stays off: in a few hundred steps it takes a third of the time on a CPU and teaches nothing.

    The task file's ``training`` says how long and how fast. The same seed, machine and number of threads give the
    same weights. Language models, and tasks that bring a head, are left alone; but the base under them moves.
    """
    tasks, settings = source.task_file.trained_tasks, source.task_file.training
    if not tasks:
        return ()
    for name in (name for name in source.task_file.tasks if name not in tasks):
        moved = f"training for {', '.join(tasks)} moves the weights under it"
        _log.warning("tasks.%s stays as it is while %s: expect it to do worse", name, moved)
    for name in filter(source.brings_head, tasks):
        both = "the model brings a head for these classes, and both are trained on"
        _log.warning("tasks.%s: %s; 'head: %s' keeps them as they are", name, both, source.path)

    turns = alternating_batches(data, tasks, settings.batch, settings.seed)
    with placed((source.models[task] for task in tasks), training_device()):
        training = Training(groups(source, tasks, settings), turns, dense_error(source, data), settings.steps)
        training.run(journal or Journal.none(), "train", progress)
    return tasks


def dense_error(source: DenseModel, data: Mapping[str, TaskData]) -> Callable[[str, Batch], Tensor]:
    """The loss of a dense model's task on a batch."""

    def error(task: str, batch: Batch) -> Tensor:
        return loss(masked_logits(source, None, task, batch), batch.labels, data[task].kind)

    return error


def groups(source: DenseModel, tasks: Iterable[str], rates: TrainingSpec | RecoverSpec) -> list[ParameterGroup]:
    """What tasks share, each parameter once, at the base's rate; heads, to which the pooler belongs, at the heads'.

    A pooler is as new to the task as its head: at the base's rate it held a 16-way task at 0.61, at the head's 0.79.
    """
    shared: dict[str, nn.Parameter] = {}
    heads: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for task in tasks:
        labelled = source.task_file.tasks[task].labelled
        for name, tensor in parameters(source.models[task]).items():
            if not isinstance(tensor, nn.Parameter) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if labelled and (not name.startswith(BASE) or "pooler" in name):
                heads[f"{task}/{name}"] = tensor
            else:
                shared[name] = tensor
    return [ParameterGroup(shared, rates.learning_rate), ParameterGroup(heads, rates.head_learning_rate)]


STAGE = "finetune"
"""The journal's stage of this training."""


@dataclass(frozen=True)
class Lesson:
    """A sparse model, a copy of its teacher, that is trained in place.

    Attributes:
        masks: the keep masks of every task that has blocks in the bundle.
        spec: steps, rates, batch and seed, and the weight of the teacher's answers in the loss.
    """

    teacher: DenseModel
    sparse: DenseModel
    masks: Masks
    data: Mapping[str, TaskData]
    spec: RecoverSpec

    def error(self, task: str, batch: Batch, rounded: Rounded | None = None) -> Tensor:
        """The loss of a task under its masks; through the rounding of its weights, if that is given."""
        return self.error_of(task, masked_logits(self.sparse, self.masks, task, batch, rounded), batch)

    def error_of(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of these logits; labels have the weight that the teacher leaves."""
        kind, weight = self.data[task].kind, self.spec.distillation
        if weight == 0:
            return loss(logits, batch.labels, kind)
        with torch.no_grad():
            answers = masked_logits(self.teacher, None, task, batch)
        return loss(logits, batch.labels, kind, answers, weight)

    def errors(self, rounding: Rounding | None) -> Callable[[str, Batch], Tensor]:
        """What finds `error` of a task on a batch, by kept blocks alone where that is faster."""
        products = SparseProducts.of(self.sparse, self.masks, rounding)
        if products is None:
            return partial(self.error, rounded=rounding)
        return lambda task, batch: self.error_of(task, products.logits(task, batch), batch)

    def placed(self) -> AbstractContextManager[None]:
        """Both models on the device to train on."""
        return placed([*self.teacher.models.values(), *self.sparse.models.values()], training_device())


def finetune(lesson: Lesson, journal: Journal, progress: StepProgress, encoding: Encoding | None = None) -> None:
    """Train the sparse modules under their masks, through the rounding of ``encoding``; None for that of the pages.

    Afterwards the modules still share all but their heads. Biases and norms of each task's own gained nothing here
    (0.872 against 0.874 with shared ones), and would be in memory for all tasks at any time.
    """
    with lesson.placed(), _leaving(lesson.sparse):
        _training(lesson, encoding).run(journal, STAGE, progress)


def leaves_tower(source: DenseModel) -> bool:
    """Whether fine-tuning leaves a picture tower as the closed form has made it.

    What the closed form leaves of a tower is close to the dense one, 0.11 of its hidden states. At a rate that suits a
    language model, 280 steps of training made that 2.6.
    """
    return source.pictures is not None and source.task_file.recover.refits


def _left(source: DenseModel) -> dict[str, nn.Parameter]:
    """Parameters that aren't trained, by canonical name."""
    if not leaves_tower(source):
        return {}
    every = (item for model in source.models.values() for item in parameters(model).items())
    return {name: value for name, value in every if name.startswith(TOWER) and isinstance(value, nn.Parameter)}


@contextmanager
def _leaving(source: DenseModel) -> Iterator[None]:
    """No gradients for what isn't trained: its part of a step is only passed through."""
    left = [value for value in _left(source).values() if value.requires_grad]
    for value in left:
        value.requires_grad_(False)
    try:
        yield
    finally:
        for value in left:
            value.requires_grad_(True)


def resumes(lesson: Lesson, journal: Journal) -> bool:
    """Whether `finetune` goes on from the journal, whatever values it is given."""
    return _training(lesson).resumes(journal, STAGE)


def _training(lesson: Lesson, encoding: Encoding | None = None) -> Training:
    tasks, spec = list(lesson.sparse.models), lesson.spec
    turns = alternating_batches(lesson.data, tasks, spec.batch, spec.seed)
    validation = validation_of(lesson.data, tasks, spec.patience)
    shared = {info.name: lesson.sparse.linear(tasks[0], info.name).weight for info in lesson.sparse.paged}
    rounding = Rounding.of(lesson.sparse, shared, spec.steps, encoding, checked=validation is not None)
    left = _left(lesson.sparse)
    rates = [
        ParameterGroup({name: value for name, value in group.parameters.items() if name not in left}, group.rate)
        for group in groups(lesson.sparse, tasks, spec)
    ]
    return Training(rates, turns, lesson.errors(rounding), spec.steps, validation, rounding)
