"""Masked joint training: values that all tasks share, each task seeing only the blocks that it keeps.

A step takes one task's batch through that task's masked weights, tasks in turn: a shared block learns from all tasks
that keep it. The dense model teaches: its answers are part of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import kl_div, log_softmax

from weightpager.bundle.manifest import TaskKind
from weightpager.compiler.data import TaskData
from weightpager.compiler.descent import Descent, ParameterGroup, autocast, in_turn
from weightpager.compiler.journal import Journal
from weightpager.compiler.masks import Masks
from weightpager.compiler.source import Source, parameters
from weightpager.compiler.task_file import RecoverSpec
from weightpager.engine.architecture import BASE
from weightpager.evaluate import IGNORED, Batch, Progress, aligned, loss


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
        with torch.no_grad(), autocast():
            answers = self.teacher.models[task](**batch.inputs).logits
        return (1 - self.distillation) * hard + self.distillation * divergence(logits, answers, batch.labels, kind)


def divergence(logits: Tensor, answers: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean Kullback-Leibler divergence of a model from its teacher, over the positions whose label counts."""
    ours, wanted = aligned(logits, labels, kind)
    theirs, _ = aligned(answers, labels, kind)
    counted = wanted != IGNORED
    log_ours, log_theirs = (log_softmax(x[counted].float(), -1) for x in (ours, theirs))
    return kl_div(log_ours, log_theirs, reduction="sum", log_target=True) / counted.sum().clamp(min=1)


def finetune(
    lesson: Lesson, sparse: Source, masks: Masks, spec: RecoverSpec, journal: Journal, progress: Progress
) -> None:
    """Train the modules of ``sparse``, a copy of the teacher, in place, under these masks.

    Afterwards the modules still share all but their heads. Biases and norms of each task's own gained nothing here
    (0.872 against 0.874 with shared ones), and would be in memory for all tasks at any time.

    Raises:
        CompileError: the loss is no longer finite.
    """
    tasks = list(sparse.models)

    def error(task: str, batch: Batch) -> Tensor:
        return lesson.error(task, masked_logits(sparse, masks, task, batch), batch)

    descent = Descent(groups(sparse, spec), spec.steps)
    descent.run(in_turn(lesson.data, tasks, spec.batch, spec.seed), error, journal, "finetune", progress)


def masked_logits(sparse: Source, masks: Masks, task: str, batch: Batch) -> Tensor:
    """A task's logits under its masks; gradients reach the module's own parameters."""
    weights = masks.parameters(sparse, task, sparse.paged)
    with autocast():
        found = functional_call(sparse.models[task], weights, kwargs=dict(batch.inputs))
    return cast(Tensor, found.logits)


def groups(sparse: Source, spec: RecoverSpec) -> list[ParameterGroup]:
    """What tasks share at the base's rate; heads, with their pooler, at the heads'."""
    shared: dict[str, nn.Parameter] = {}
    heads: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for task, model in sparse.models.items():
        labelled = sparse.task_file.tasks[task].labelled
        for name, tensor in parameters(model).items():
            if not isinstance(tensor, nn.Parameter) or id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if labelled and (not name.startswith(BASE) or "pooler" in name):
                heads[f"{task}/{name}"] = tensor
            else:
                shared[name] = tensor
    return [ParameterGroup(shared, spec.learning_rate), ParameterGroup(heads, spec.head_learning_rate)]
