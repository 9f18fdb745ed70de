"""Masked joint training: values that all tasks share, each task seeing only the blocks that it keeps.

A step takes one task's batch through that task's masked weights, tasks in turn: a shared block learns from all tasks
that keep it. The dense model teaches: its answers are part of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from weightpager.answers.evaluate import Batch, loss
from weightpager.answers.kinds import kind_of
from weightpager.answers.kinds.kind import IGNORED
from weightpager.bundle.format.manifest import TaskKind
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.model.device import autocast, placed, training_device
from weightpager.compiler.model.masks import Masks, masked_logits
from weightpager.compiler.recovery.early_stopping import validation_of
from weightpager.compiler.recovery.train import groups
from weightpager.compiler.recovery.training_loop import Training, in_turn
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.progress import Steps

STAGE = "finetune"
"""Of the journal."""


@dataclass(frozen=True)
class Lesson:
    """What the sparse tasks learn from.

    Attributes:
        teacher: the dense model.
        data: of every task.
        distillation: weight of the teacher's answers in the loss; the labels have the rest.
    """

    teacher: Source
    data: Mapping[str, TaskData]
    distillation: float

    def error(self, task: str, logits: Tensor, batch: Batch) -> Tensor:
        """The loss of a task's logits."""
        kind = self.data[task].kind
        hard = loss(logits, batch.labels, kind)
        if self.distillation == 0:
            return hard
        with torch.no_grad(), autocast(logits.device):
            answers = self.teacher.models[task](**batch.inputs).logits
        return (1 - self.distillation) * hard + self.distillation * divergence(logits, answers, batch.labels, kind)

    def placed(self, sparse: Source) -> AbstractContextManager[None]:
        """The teacher and what it teaches on the device to train on."""
        return placed([*self.teacher.models.values(), *sparse.models.values()], training_device())


def divergence(logits: Tensor, answers: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean Kullback-Leibler divergence of a model from its teacher, over the positions whose label counts."""
    ours, wanted = kind_of(kind).aligned(logits, labels)
    theirs, _ = kind_of(kind).aligned(answers, labels)
    counted = wanted != IGNORED
    log_ours, log_theirs = (log_softmax(x[counted].float(), -1) for x in (ours, theirs))
    return kl_div(log_ours, log_theirs, reduction="sum", log_target=True) / counted.sum().clamp(min=1)


def finetune(
    lesson: Lesson, sparse: Source, masks: Masks, spec: RecoverSpec, journal: Journal, progress: Steps
) -> None:
    """Train the modules of ``sparse``, a copy of the teacher, in place, under these masks.

    Afterwards the modules still share all but their heads. Biases and norms of each task's own gained nothing here
    (0.872 against 0.874 with shared ones), and would be in memory for all tasks at any time.

    Raises:
        CompileError: the loss is no longer finite.
    """
    with lesson.placed(sparse):
        _training(lesson, sparse, masks, spec).run(journal, STAGE, progress)


def resumes(lesson: Lesson, sparse: Source, masks: Masks, spec: RecoverSpec, journal: Journal) -> bool:
    """Whether `finetune` goes on from the journal, whatever values it is given."""
    return _training(lesson, sparse, masks, spec).resumes(journal, STAGE)


def _training(lesson: Lesson, sparse: Source, masks: Masks, spec: RecoverSpec) -> Training:
    tasks = list(sparse.models)

    def error(task: str, batch: Batch) -> Tensor:
        return lesson.error(task, masked_logits(sparse, masks, task, batch), batch)

    turns = in_turn(lesson.data, tasks, spec.batch, spec.seed)
    watched = validation_of(lesson.data, tasks, spec.patience)
    return Training(groups(sparse, tasks, spec), turns, error, spec.steps, watched, spec.patience)
