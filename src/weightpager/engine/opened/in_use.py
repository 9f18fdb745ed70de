"""Who uses which tasks, and what ends it, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from weightpager.engine.opened.open_task import OpenTask


def in_use(tasks: Mapping[str, OpenTask], real_time: Collection[str], current: str | None, leaving: str | None) -> str:
    """A sentence about each task in use; empty if there is none.

    Args:
        tasks: of the open bundle.
        real_time: those that never leave memory.
        current: the task that was activated last.
        leaving: a task that needs no mention, since it is left for another one.
    """
    said = []
    for name, task in tasks.items():
        users = list(_users(name, task, name in real_time, name == current and name != leaving))
        if name != leaving and task.gate.holders > (name in real_time) + task.pins + (name == current):
            users.append("by engine.task: end its 'with' block")
        if users:
            said.append(f"Task {name!r} is in use {', and '.join(users)}.")
    return " ".join(said)


def _users(name: str, task: OpenTask, real_time: bool, current: bool) -> Iterator[str]:
    if real_time:
        yield "for real time: open an engine without it in real_time"
    if task.pins:
        yield f"as it is pinned: call engine.unpin({name!r})"
    if current:
        yield "by engine.activate or predict: call engine.deactivate()"
