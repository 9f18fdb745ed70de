"""How often each task follows each other one, as a task file's trace has it."""

from __future__ import annotations

from weightpager.compiler.task_file.file import TaskFile
from weightpager.trace_file import read_trace
from weightpager.transitions import Transitions


def read_transitions(task_file: TaskFile, old: Transitions | None = None) -> Transitions:
    """Read the task file's trace once: it may be an engine's history, which grows.

    Args:
        task_file: without a trace every task is as likely as any other to come next.
        old: those of a base's tasks, which come first.

    Raises:
        ConfigError: the trace can't be used.
    """
    new = tuple(task_file.tasks)
    if task_file.transitions is not None:
        names = new if old is None else (*old.tasks, *new)
        return Transitions.from_trace(names, read_trace(task_file.transitions, names))
    return Transitions.uniform(new) if old is None else old.extended(new)
