"""Who uses which task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.prefetching import Prefetching, uses_after
from weightpager.engine.report import SwitchLog
from weightpager.errors import BudgetError, TaskNotActiveError
from weightpager.interrupts import uninterrupted
from weightpager.runtime.paging.load import Priority
from weightpager.runtime.paging.state import Deadline, LoadStats, SwitchRequest


class TaskHolds:
    """Brings tasks in, lets their layers read while they are held, and tells of every switch.

    Safe to use from several threads.
    """

    def __init__(
        self, opened: OpenBundle, switches: SwitchLog, real_time: Collection[str], prefetching: Prefetching
    ) -> None:
        """Nobody holds a task.

        Args:
            opened: the bundle.
            switches: keeps their reports.
            real_time: tasks whose pages are read before others'.
            prefetching: is told of every switch.
        """
        self._open = opened
        self._switches = switches
        self._real_time = real_time
        self._prefetching = prefetching
        self._lock = threading.RLock()  # pins; never kept while storage works

    def hold(
        self,
        name: str,
        previous: str | None = None,
        give_up: Callable[[], None] = lambda: None,
        *,
        wait: bool = True,
        timeout: float | None = None,
        is_visit: bool = True,
    ) -> Any:
        """Hold a task until `release`. Returns its module. Errors are those of `Engine.task` and `Engine.activate`.

        Whoever calls it is `uninterrupted`: a hold is worth nothing until he knows of it.

        Args:
            name: of the task.
            previous: the task that is left for it.
            give_up: leaves the previous task, if both don't fit together.
            wait: whether to return only when all pages are there.
            timeout: seconds to wait for room and for other switches.
            is_visit: whether somebody asked for the task; to keep it in memory is no visit.
        """
        task, module = self._open.task_and_module(name)
        start = time.perf_counter()
        request = SwitchRequest(
            task.number,
            name,
            previous=None if previous is None else self._open.tasks[previous].number,
            give_up=give_up,
            deadline=Deadline.after(timeout),
            wait=wait,
            priority=Priority.REAL_TIME if name in self._real_time else Priority.ON_DEMAND,
            ask_uses=partial(uses_after, task.number, self._open, self._switches.monitor),
            tables=task.tables,
            previous_tables=None if previous is None else self._open.tasks[previous].tables,
        )
        try:
            stats, load = self._open.residency.hold(request)
        except BudgetError:
            # Raises the clearer error if the task doesn't fit even when all but the real-time tasks have left.
            self._open.check_fits(name, self._real_time)
            raise
        try:
            task.gate.hold(None if load is None else load.pages)
        except BaseException:
            self._open.residency.release(task.number, task.tables)
            raise
        try:
            seconds, waited = time.perf_counter() - start, load is None
            before = self._switches.record_switch(name, stats, seconds, waited=waited, is_visit=is_visit)
            if is_visit and before != name:
                self._prefetching.tell(task.number, stats)
        except BaseException:  # who hasn't got the module can't leave the task
            self.release(name)
            raise
        return module

    @uninterrupted
    def release(self, name: str) -> None:
        """Undo one `hold`, once no layer is reading if it was the last."""
        task = self._open.tasks[name]
        task.gate.release()
        self._open.residency.release(task.number, task.tables)

    @uninterrupted
    def enter_again(self, name: str, *, wait: bool) -> Any:
        """Record a visit to a task that is held. Returns its module.

        Returns None, and records nothing, if its pages haven't come and the caller must `hold` it again.
        """
        task = self._open.tasks[name]
        if not task.gate.is_ready and (wait or task.gate.has_failed):
            return None
        if self._switches.monitor.record(name) != name:
            self._prefetching.tell(task.number, LoadStats())
        return task.module

    @uninterrupted
    def pin(self, name: str) -> None:
        """Hold a task until `unpin`."""
        self.hold(name, is_visit=False)
        with self._lock:
            self._open.tasks[name].pins += 1

    @uninterrupted
    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskNotActiveError: the task isn't pinned.
        """
        task = self._open.task(name)
        with self._lock:
            if not task.pins:
                raise TaskNotActiveError(f"task {name!r} is not pinned")
            task.pins -= 1
        self.release(name)
