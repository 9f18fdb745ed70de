"""The dense model, trained for as many steps more as the sparse one: the only fair one to compare it with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.model.dense_model import Source
from weightpager.compiler.recovery.finetune import Lesson
from weightpager.compiler.recovery.train import dense_error, groups
from weightpager.compiler.recovery.training_loop import Descent, in_turn
from weightpager.compiler.resume.journal import Journal
from weightpager.compiler.task_file.file import TaskFile
from weightpager.compiler.task_file.sections import RecoverSpec
from weightpager.progress import Steps

STAGE = "dense"
"""Of the journal."""


def steps_of(task_file: TaskFile) -> int:
    """Steps that recovery trains in all, those of private blocks and low-rank parts included."""
    spec = task_file.recover
    if spec.method != "finetune":
        return 0
    alone = spec.private_steps * len(task_file.tasks) if spec.private_blocks or spec.low_rank else 0
    return spec.steps + alone


def trained_on(
    dense: Source, data: Mapping[str, TaskData], spec: RecoverSpec, steps: int, journal: Journal, progress: Steps
) -> Source:
    """A copy of the dense model, trained by the data, rates, seed and early stopping of recovery, on labels alone.

    Raises:
        CompileError: the loss is no longer finite.
    """
    longer = replace(dense, models=copy.deepcopy(dense.models))
    lesson, tasks = Lesson(longer, data, 0.0), list(longer.models)
    error, turns = dense_error(longer, data), in_turn(data, tasks, spec.batch, spec.seed)
    with lesson.placed(longer):
        watch = lesson.watch(error, tasks, steps, spec.patience)
        Descent(groups(longer, tasks, spec), steps).run(turns, error, journal, STAGE, progress, watch)
    return longer
