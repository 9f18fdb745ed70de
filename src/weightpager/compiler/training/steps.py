"""How many steps a training makes where the task file doesn't say: as many as there is data for, up to a default."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TypeVar

from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import RecoverSpec, TrainingSpec

_log = logging.getLogger(__name__)

TIMES = 20
"""How often an example is learnt from at most (decision 37)."""

_Spec = TypeVar("_Spec", TrainingSpec, RecoverSpec)


def with_steps(task_file: TaskFile, data: Mapping[str, TaskData]) -> TaskFile:
    """The task file with the steps that its data is enough for, where it states none."""
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
