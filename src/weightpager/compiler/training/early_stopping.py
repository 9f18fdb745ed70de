"""Early stopping: go back to the values that did best on validation data, and end when they no longer improve."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from weightpager.compiler.data import Batch, TaskData
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import RecoverSpec, TrainingSpec

CHECKS = 10
"""Checks of a training, beside one before its first step; fewer where it has fewer steps."""

ITEMS = 128
"""Validation examples per task and check: of the loss, not of a metric, so that few suffice."""

_BEST, _SEEN = "best/", "seen"


def check_steps(steps: int) -> frozenset[int]:
    """After which steps a training is looked at: before the first, then at equal distances, and after the last."""
    return frozenset({0, *(-(-steps * number // CHECKS) for number in range(1, CHECKS + 1))})


@dataclass(frozen=True)
class Validation:
    """What decides when a training ends.

    Attributes:
        batches: the batches that a training is checked on, by task.
        patience: number of checks in a row without improvement after which the training ends.
    """

    batches: Mapping[str, Sequence[Batch]]
    patience: int

    def loss(self, error: Callable[[str, Batch], Tensor]) -> float:
        """Mean over the tasks of the mean over their batches."""
        with torch.no_grad():
            means = [
                sum(error(task, batch).item() for batch in batches) / len(batches)
                for task, batches in self.batches.items()
            ]
        return sum(means) / len(means)

    def to(self, device: torch.device) -> Validation:
        """The same with its batches on a device."""
        placed = {task: [batch.to(device) for batch in batches] for task, batches in self.batches.items()}
        return Validation(placed, self.patience)


def validation_of(data: Mapping[str, TaskData], tasks: Sequence[str], patience: int) -> Validation | None:
    """The validation of a training of these tasks; None if one has no validation data, or the patience is 0."""
    examples = {task: data[task].validation for task in tasks}
    if patience == 0 or not all(examples.values()):
        return None
    drawn = {
        task: random.Random(0).sample(of_task, min(ITEMS, len(of_task)))  # noqa: S311
        for task, of_task in examples.items()
        if of_task
    }
    batches = {task: data[task].batches(of_task, ITEMS // 2) for task, of_task in drawn.items()}
    return Validation(batches, patience)


class EarlyStopping:
    """Watches a training of so many ``steps`` through its loss on validation data."""

    def __init__(self, error: Callable[[str, Batch], Tensor], validation: Validation, steps: int) -> None:
        self._error = error
        self._validation = validation
        self._checks = check_steps(steps)
        self._least = float("inf")
        self._waited = 0
        self._best: dict[str, Tensor] = {}

    def check(self, step: int, values: Mapping[str, Tensor]) -> bool:
        """Measure the loss if a check is due after ``step`` steps, and keep the values if they are the best so far.

        Returns:
            Whether the training should end.
        """
        if step not in self._checks:
            return False
        loss = self.loss()
        if loss < self._least:
            self._least, self._waited = loss, 0
            self._best = {name: value.detach().clone() for name, value in values.items()}
        else:
            self._waited += 1
        return self._waited >= self._validation.patience

    def loss(self) -> float:
        """That of the values as they are."""
        return self._validation.loss(self._error)

    def go_back(self, values: Mapping[str, Tensor]) -> None:
        """Give a training's tensors the values that did best."""
        with torch.no_grad():
            for name, best in self._best.items():
                values[name].copy_(best)

    def state(self, *, with_best: bool = True) -> dict[str, Tensor]:
        """What `restore` needs; the best values only if there is still a choice to make."""
        seen = torch.tensor([self._least, self._waited], dtype=torch.float64)
        return {_SEEN: seen, **{_BEST + name: value for name, value in self._best.items() if with_best}}

    @staticmethod
    def fits(state: Mapping[str, Tensor], names: Collection[str]) -> bool:
        """Whether `restore` finds in a state what it needs to watch a training of the tensors of these names."""
        best = {name.removeprefix(_BEST) for name in state if name.startswith(_BEST)}
        return _SEEN in state and best in (set(), set(names))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where another one stood."""
        least, waited = state[_SEEN].tolist()
        self._least, self._waited = least, int(waited)
        self._best = {name.removeprefix(_BEST): value for name, value in state.items() if name.startswith(_BEST)}


_log = logging.getLogger(__name__)

TIMES = 20
"""How often an example is learnt from at most (decision 37)."""

_Spec = TypeVar("_Spec", TrainingSpec, RecoverSpec)


def with_steps(task_file: TaskFile, data: Mapping[str, TaskData]) -> TaskFile:
    """The task file with the steps that its data is enough for, where it states none."""
    if not data:
        return task_file
    rows = {name: len(of_task.train) for name, of_task in data.items()}
    learning = [rows[name] for name in task_file.trained_tasks]
    training, recover = task_file.training, _settled(task_file.recover, list(rows.values()))
    if learning:
        training = _settled(training, learning)
        _tell("training", training.steps, task_file.training.steps, learning)
    if recover.method == "finetune":
        _tell("recover", recover.steps, task_file.recover.steps, list(rows.values()))
    if "private_steps" not in recover.stated_steps:
        alone = min(recover.private_steps, enough([max(rows.values())], recover.batch))
        recover = recover.model_copy(update={"private_steps": alone})
    return task_file.model_copy(update={"training": training, "recover": recover})


def enough(rows: list[int], batch: int) -> int:
    """Steps, the tasks in turn, in which the task with the most rows sees each of them `TIMES` times."""
    most = max(rows)
    return len(rows) * -(-TIMES * most // min(batch, most))


def _settled(spec: _Spec, rows: list[int]) -> _Spec:
    if "steps" in spec.stated_steps:
        return spec
    return spec.model_copy(update={"steps": min(spec.steps, enough(rows, spec.batch))})


def _tell(section: str, ours: int, default: int, rows: list[int]) -> None:
    if ours < default:
        seen = f"the {max(rows)} examples of the largest task {TIMES} times"
        _log.info("%s.steps: %d instead of %d, which shows %s; state steps for others", section, ours, default, seen)
