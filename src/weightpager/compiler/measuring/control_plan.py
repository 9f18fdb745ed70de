"""Which controls a compile will measure, and what that takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from weightpager.bundle.report.compile_report import DENSE, FEW, MASK, Compared
from weightpager.compiler.data.splits import TaskData
from weightpager.compiler.measuring.quantise import QUANTISATIONS
from weightpager.compiler.task_file.file import TaskFile

CHOICE = (f"{DENSE} on validation data", f"{DENSE} as it was on validation data")
"""What is measured to choose between the dense model that is trained on and the one that isn't, in this order."""


def compared(task_file: TaskFile, data: Mapping[str, TaskData]) -> Compared:
    """What is compared: as the task file says; if it doesn't, nothing that takes long for what few items could tell.

    Training takes long, and so does writing the answers of a task once for each control.
    """
    few = all(len(of_task.eval) < FEW for of_task in data.values())
    takes_long = task_file.recovery_steps > 0 or any(task.completes for task in task_file.tasks.values())
    if few and takes_long and "compare" not in task_file.model_fields_set:
        return "few"
    return task_file.compare


def control_names(task_file: TaskFile, data: Mapping[str, TaskData]) -> list[str]:
    """Names of the controls that `controls.measure_controls` measures, in its order."""
    what = compared(task_file, data)
    if what in ("none", "few"):
        return []
    trains = task_file.recovery_steps > 0
    shared = _can_share(task_file) and (what == "all" or not trains)
    return [DENSE] * trains + [*QUANTISATIONS] + [MASK] * shared


def measuring(control: str, task: str, names: Sequence[str]) -> str:
    """What progress calls the measurement of a control on a task, ``names`` being those of all controls."""
    place = f" ({names.index(control) + 1} of {len(names)})" if control in names else ""
    return f"control {control}{place}: {task}"


def control_work(task_file: TaskFile, what: Compared | None = None) -> str | None:
    """What the controls will take, in words; None if nothing is trained for them. ``what`` is `compared`, if known."""
    steps, what = task_file.recovery_steps, what or task_file.compare
    if steps == 0 or what in ("none", "few"):
        return None
    masked = " and one shared mask" if what == "all" and _can_share(task_file) else ""
    each = " each" if masked else ""
    return (
        f"{steps} steps of recovery, and as many{each} for the dense model{masked} to compare it with; "
        "'--compare none' leaves these out"
    )


def validation_data(data: Mapping[str, TaskData]) -> Mapping[str, TaskData] | None:
    """The tasks with their validation data in place of held-out data; None if one has none."""
    found = {task: replace(of_task, eval=of_task.validation) for task, of_task in data.items() if of_task.validation}
    return found if len(found) == len(data) else None


def _can_share(task_file: TaskFile) -> bool:
    """Whether one shared mask is anything else than what is compiled."""
    return len(task_file.tasks) > 1 and bool(np.isfinite(task_file.alignment))
