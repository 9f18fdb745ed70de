"""Parameters of one task's own over a frozen base: its head, its pooler, and the base's biases and norms.

They are all that a task that is added to a bundle may change: they are loaded with the bundle, not at a switch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from weightpager.backends.torch.model.architecture import BASE
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.model.named_parameters import requiring_gradients
from weightpager.compiler.recovery.rounding import stored_if_coarse
from weightpager.compiler.recovery.task_trainings import State, TaskTraining, each_trained
from weightpager.compiler.recovery.training_loop import ParameterGroup, Schedule, Training, alternating_batches
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.resume.workers import LOCAL, Workers
from weightpager.compiler.training.logits import logits_with
from weightpager.compiler.training.loss import loss
from weightpager.compiler.training.masks import Masks
from weightpager.progress import StepProgress

_COPIES = 3
"""A training holds a model and its weights under a mask; what is trained is small."""


def untie_own_vectors(model: PreTrainedModel, *, pooler: bool) -> None:
    """Give a task's module copies of the base's vectors, which other modules must not see moving.

    Args:
        model: module of the task.
        pooler: copy the pooler, too. Joint training has made one for all tasks, which stays; a task that is added to a
            base trains one of its own, as it does its head.
    """
    for name, module in model.base_model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None and (parameter.ndim == 1 or (pooler and "pooler" in f"{name}.{key}")):
                module._parameters[key] = nn.Parameter(parameter.detach().clone())


def own_parameters(source: DenseModel, task: str) -> dict[str, nn.Parameter]:
    """What a task trains beside its blocks: the base's vectors, its head and its pooler, where they are its own.

    Vectors must have been made its own by `untie_own_vectors`. Decoders share their head. A pooler that other tasks
    have stays as they know it, and one of a task that brings its head stays as that head knows it.
    """
    spec = source.task_file.tasks[task]
    others = {id(t) for other, model in source.models.items() if other != task for t in parameters(model).values()}

    def is_own(name: str, tensor: Tensor) -> bool:
        if not name.startswith(BASE):
            return spec.labelled
        return tensor.ndim == 1 or ("pooler" in name and spec.trained and id(tensor) not in others)

    return {
        name: tensor
        for name, tensor in parameters(source.models[task]).items()
        if isinstance(tensor, nn.Parameter) and is_own(name, tensor)
    }


def train_own(
    source: DenseModel,
    data: Mapping[str, TaskData],
    masks: Masks | None,
    stage: str,
    journal: Journal,
    progress: StepProgress,
    workers: Workers = LOCAL,
) -> None:
    """Train the own parameters of the tasks that are trained, in place.

    `untie_own_vectors` must have made them their own.

    Args:
        source: the model; its task file says how long, at the rate of heads. Steps are the tasks' in turn, and the rate
            follows the count of all.
        data: of the tasks.
        masks: the masks that the base computes under; None for the dense base.
        stage: the beginning of tasks' names in the journal, see `own_stage`.
        journal: where the training stands.
        progress: told (steps done, steps in all).
        workers: train the tasks.

    Raises:
        CompileError: the loss is no longer finite.
    """
    tasks, trainings = source.task_file.trained_tasks, {}
    for number, task in enumerate(tasks):
        schedule, name = Schedule(source.task_file.training.steps, number, len(tasks)), own_stage(stage, task)
        training = _OwnTraining(source.alone(task), task, data[task], masks, schedule, name)
        trainings[task] = TaskTraining(name, schedule.own_steps, partial(_train, training), _COPIES)
    for done in each_trained(trainings, journal, progress, workers):
        trainable = own_parameters(source, done.key)
        with torch.no_grad():
            for name, parameter in trainable.items():
                parameter.copy_(done.value[name])


def own_stage(stage: str, task: str) -> str:
    """The name in the journal of a task's training in ``stage``, own-dense or own-sparse."""
    return f"{stage}-{task}"


@dataclass(frozen=True)
class _OwnTraining:
    """The training of one task's own parameters.

    Attributes:
        source: the model, with this task's module alone.
        task: its name.
        data: the task's data.
        masks: the masks that the base computes under; None for the dense base.
        schedule: those of all tasks' steps that it makes.
        stage: its name in the journal.
    """

    source: DenseModel
    task: str
    data: TaskData
    masks: Masks | None
    schedule: Schedule
    stage: str


def _train(of: _OwnTraining, journal: Journal, progress: StepProgress) -> State:
    """Train a task's own parameters in place, and give their values."""
    source, task, data = of.source, of.task, of.data
    settings, trainable = source.task_file.training, own_parameters(source, task)
    with torch.no_grad():
        frozen = {} if of.masks is None else _as_stored(source, of.masks, task)

    def error(_task: str, batch: Batch) -> Tensor:
        return loss(logits_with(source.models[task], frozen, batch, data.kind), batch.labels, data.kind)

    groups = [ParameterGroup(trainable, settings.head_learning_rate)]
    turns = alternating_batches({task: data}, [task], settings.batch, settings.seed)
    with requiring_gradients(source.models[task], list(trainable.values())):
        training = Training(groups, turns, error, of.schedule.own_steps, schedule=of.schedule)
        training.run(journal, of.stage, progress)
    return training.state()


def _as_stored(source: DenseModel, masks: Masks, task: str) -> dict[str, Tensor]:
    """A task's masked weights, rounded where its pages round coarsely."""
    grids, dtype = {info.name: info.grid for info in source.paged}, source.task_file.dtype
    return masks.parameters(
        source, task, source.paged, lambda name, weight: stored_if_coarse(weight, grids[name], dtype)
    )
