"""Parameters of one task's own over a frozen base: its head, its pooler, and the base's biases and norms.

They are all that a task that is added to a bundle may change: they are loaded with the bundle, not at a switch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weightpager.backends.torch.architecture import BASE
from weightpager.bundle.format.low_rank import LowRank
from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.model.dense_model import DenseModel, parameters
from weightpager.compiler.model.paged_weights import requiring_gradients
from weightpager.compiler.recovery.rounding import stored_if_coarse
from weightpager.compiler.recovery.training_loop import ParameterGroup, Schedule, Training, alternating_batches
from weightpager.compiler.resume.journal import LOCAL, Done, Journal, Workers
from weightpager.compiler.training.loss import logits_with, loss
from weightpager.compiler.training.masks import Masks
from weightpager.errors import CompileError
from weightpager.progress import StepProgress


class LowRankParameters:
    """One task's low-rank parts while they are trained; rank 0 has none.

    They start as PEFT's do: A drawn, B zero, so that at first nothing is added.
    """

    def __init__(self, sparse: DenseModel, task: str, rank: int, seed: int) -> None:
        self._pairs: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}
        drawn = torch.Generator().manual_seed(seed)
        for info in sparse.own if rank else ():
            device = sparse.linear(task, info.name).weight.device
            bound = 1 / math.sqrt(info.grid.in_features)
            down = (2 * torch.rand(rank, info.grid.in_features, generator=drawn) - 1) * bound
            up = torch.zeros(info.grid.out_features, rank)
            self._pairs[info.name] = nn.Parameter(down.to(device)), nn.Parameter(up.to(device))

    def parameters(self) -> dict[str, nn.Parameter]:
        """All of them, by name."""
        named: dict[str, nn.Parameter] = {}
        for name, (down, up) in self._pairs.items():
            named |= {f"{name}.lora_A": down, f"{name}.lora_B": up}
        return named

    def added(self, name: str, weight: Tensor) -> Tensor:
        """``weight [out_features, in_features]`` with this weight's part added; differentiable."""
        pair = self._pairs.get(name)
        return weight if pair is None else weight + pair[1] @ pair[0]

    def added_to(self, name: str, y: Tensor, x: Tensor) -> Tensor:
        """``y + x Aᵀ Bᵀ``: a layer's outputs y [..., out_features], and what its part makes of the inputs x."""
        pair = self._pairs.get(name)
        return y if pair is None else y + linear(linear(x, pair[0]), pair[1])

    def of(self, trained: Mapping[str, Tensor]) -> dict[str, LowRank]:
        """The parts by paged weight, of values that parameters of the same names were trained to."""
        return {
            name: LowRank(*(trained[f"{name}.lora_{part}"].detach().cpu().numpy() for part in "AB"))
            for name in self._pairs
        }


def check_rank(source: DenseModel, rank: int) -> None:
    """See before anything is trained that every paged weight can have parts of this rank.

    Raises:
        CompileError: one is too small.
    """
    for info in source.paged:
        if rank > min(info.grid.in_features, info.grid.out_features):
            shape = f"{info.grid.out_features} × {info.grid.in_features}"
            raise CompileError(f"recover.low_rank: expected at most the rank of {info.name}, {shape}; found {rank}")


def dense_part(parts: Mapping[str, LowRank], name: str) -> Tensor | float:
    """What is added to a paged weight, ``[out_features, in_features]``; 0 if nothing is."""
    part = parts.get(name)
    return 0.0 if part is None else torch.from_numpy(part.up @ part.down)


State = Mapping[str, Tensor]
"""What was trained, by name, as a journal keeps it."""


@dataclass(frozen=True)
class TaskTraining:
    """The training of one task.

    Attributes:
        stage: its name in the journal.
        train: makes the steps; a `functools.partial` of a function of a module.
        copies: how many times as much as it is made of it holds.
    """

    stage: str
    steps: int
    train: Callable[[Journal, StepProgress], State]
    copies: int


def each_trained(
    trainings: Mapping[str, TaskTraining], journal: Journal, progress: StepProgress, workers: Workers
) -> Iterator[Done[str, State]]:
    """Train tasks, of which none sees what another changes; each is given once it is trained, and in the journal.

    What has begun in the journal goes on here. ``progress`` is told of the steps of all together.
    """
    told, copies = _Sum(trainings, progress), max((of.copies for of in trainings.values()), default=1)
    here = [task for task, of in trainings.items() if workers.here or journal.knows(of.stage)]
    jobs = {task: partial(trainings[task].train, journal) for task in here}
    for done in (workers if workers.here else LOCAL).each(jobs, told.of, copies):
        told.ended(done.key)
        yield done
        del done  # a copy of what was trained
    others = {task: partial(of.train, Journal.none()) for task, of in trainings.items() if task not in here}
    for done in workers.each(others, told.of, copies):
        told.ended(done.key)
        journal.write(trainings[done.key].stage, trainings[done.key].steps, done.value, done.seconds)
        yield done
        del done


class _Sum:
    """Tells of the steps of all trainings as of one."""

    def __init__(self, trainings: Mapping[str, TaskTraining], progress: StepProgress) -> None:
        self._progress, self._steps = progress, {task: of.steps for task, of in trainings.items()}
        self._done = dict.fromkeys(trainings, 0)

    def of(self, task: str) -> StepProgress:
        """Told of one task's steps."""
        return partial(self._tell, task)

    def ended(self, task: str) -> None:
        """Count all steps of a task, which a journal may have had."""
        self._done[task] = self._steps[task]

    def _tell(self, task: str, done: int, _total: int) -> None:
        self._done[task] = done
        self._progress(sum(self._done.values()), sum(self._steps.values()))


_COPIES = 3
"""A training holds a model and its weights under a mask; what is trained is small."""


def untie_own_vectors(source: DenseModel, task: str, *, pooler: bool) -> None:
    """Give a task's module copies of the base's vectors, which others must not see moving; of the ``pooler`` too.

    Joint training has made one pooler for all tasks, which stays; a task that is added to a base trains one of its own,
    as it does its head. A picture tower that tasks share stays one.
    """
    for name, module in source.models[task].base_model.named_modules():
        for key, parameter in module._parameters.items():
            if not source.may_differ(f"{BASE}{name}.{key}"):
                continue
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
        if not source.may_differ(name):
            return False
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

    `untie_own_vectors` must have made them their own. Steps, at the rate of heads, are the tasks' in turn, and the rate
    follows the count of all. The base computes under ``masks``; None for the dense base. ``stage`` is the beginning of
    tasks' names in the journal, see `own_stage`.
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
    """The training of one task's own parameters, of a source with this task's module alone; see `train_own`.

    Attributes:
        schedule: those of all tasks' steps that it makes.
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
