"""Joint training of the dense model: one base, a head per labelled task that brings none."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from weightpager.backends.torch.model.architecture import BASE
from weightpager.compiler.data.batch import Batch
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.recovery.training_loop import ParameterGroup, Training, alternating_batches
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.sections import RecoverSpec, TrainingSpec
from weightpager.compiler.training.device import placed, training_device
from weightpager.compiler.training.logits import masked_logits
from weightpager.compiler.training.loss import loss
from weightpager.progress import StepProgress, silent

_log = logging.getLogger(__name__)


def train(
    source: DenseModel, data: Mapping[str, TaskData], progress: StepProgress = silent, journal: Journal | None = None
) -> tuple[str, ...]:
    """Train the base and the heads of `trained_tasks` in place, a step per task in turn; returns those tasks.

    Dropout stays off: in a few hundred steps it takes a third of the time on a CPU and teaches nothing.

    The task file's ``training`` says how long and how fast. The same seed, machine and number of threads give the
    same weights. Language models, and tasks that bring a head, are left alone; but the base under them moves.

    Raises:
        CompileError: the loss is no longer finite.
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
