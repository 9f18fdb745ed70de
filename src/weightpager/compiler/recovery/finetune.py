"""Masked joint training: values that all tasks share, each task seeing only the blocks that it keeps.

A step takes one task's batch through that task's masked weights, tasks in turn: a shared block learns from all tasks
that keep it. The dense model teaches: its answers are part of the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.compiler.recovery.rounding import Rounding
from weightpager.compiler.recovery.train import groups
from weightpager.compiler.recovery.training_loop import Training, alternating_batches
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.early_stopping import validation_of
from weightpager.compiler.training.logits import masked_logits
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import Masks, Rounded
from weightpager.compiler.training.sparse_products import SparseProducts
from weightpager.page_dtype import Encoding
from weightpager.progress import StepProgress

STAGE = "finetune"
"""The journal's stage of this training."""


@dataclass(frozen=True)
class Lesson:
    """A sparse model, and what it learns from.

    Attributes:
        teacher: the dense model.
        sparse: a copy of it, trained in place.
        masks: the keep masks of every task that has blocks in the bundle.
        data: every task's data.
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
    """Train the sparse modules under their masks.

    Afterwards the modules still share all but their heads. Biases and norms of each task's own gained nothing here
    (0.872 against 0.874 with shared ones), and would be in memory for all tasks at any time.

    Args:
        lesson: what is trained, and by what.
        journal: of the compile.
        progress: told of the steps.
        encoding: whose rounding the training goes through; None for that of the pages.

    Raises:
        CompileError: the loss is no longer finite.
    """
    with lesson.placed():
        _training(lesson, encoding).run(journal, STAGE, progress)


def resumes(lesson: Lesson, journal: Journal) -> bool:
    """Whether `finetune` goes on from the journal, whatever values it is given."""
    return _training(lesson).resumes(journal, STAGE)


def _training(lesson: Lesson, encoding: Encoding | None = None) -> Training:
    tasks, spec = list(lesson.sparse.models), lesson.spec
    turns = alternating_batches(lesson.data, tasks, spec.batch, spec.seed)
    validation = validation_of(lesson.data, tasks, spec.patience)
    shared = {info.name: lesson.sparse.linear(tasks[0], info.name).weight for info in lesson.sparse.paged}
    rounding = Rounding.of(lesson.sparse, shared, spec.steps, encoding, checked=validation is not None)
    rates = groups(lesson.sparse, tasks, spec)
    return Training(rates, turns, lesson.errors(rounding), spec.steps, validation, rounding)
