"""Who uses which task, and the record of switches between them."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.report import SwitchReport
from weightpager.errors import BudgetError, BundleError, BusyError, TaskNotActiveError, TaskTooLargeError, of_bundle
from weightpager.interrupts import uninterrupted
from weightpager.runtime.paging.load import Priority
from weightpager.runtime.paging.state import Deadline, LoadStats, SwitchRequest
from weightpager.runtime.prediction.task_monitor import TaskMonitor, expected_uses_after

if TYPE_CHECKING:
    from weightpager.engine.prefetching import EnginePrefetching

_SWITCHES_KEPT = 1000
_WORKING_SET_VISITS = 32
"""Latest visits whose tasks make up the working set."""

_log = logging.getLogger(__name__)


class SwitchLog:
    """Keeps reports of switches. For many threads.

    Unless told not to, it says once if the tasks in use need more than the arena holds.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, *, warns: bool) -> None:
        self._open = opened
        self.monitor = monitor
        self._lock = threading.Lock()
        self._reports: deque[SwitchReport] = deque(maxlen=_SWITCHES_KEPT)
        self._warned = not warns

    def record_switch(self, name: str, stats: LoadStats, seconds: float, *, waited: bool, is_visit: bool) -> str | None:
        """Keep the report of a switch, and tell the monitor of a visit. Returns the task of the one before, if any."""
        before = self.monitor.record(name) if is_visit else self.monitor.current
        pages = stats.bytes // self._open.memory.arena.page_bytes
        report = SwitchReport(before, name, pages, stats.bytes, stats.reads, stats.seconds, seconds, waited)
        with self._lock:
            self._reports.append(report)
            blocks = self._open.residency.blocks
            if pages and not self._warned and blocks.reloads and blocks.ever_loaded > blocks.slots:
                self._warn_of_thrashing(self.working_set())
        return before

    @property
    def last(self) -> SwitchReport | None:
        """The latest report; None before the first switch."""
        with self._lock:
            return self._reports[-1] if self._reports else None

    def latest(self) -> tuple[SwitchReport, ...]:
        """The latest reports, oldest first."""
        with self._lock:
            return tuple(self._reports)

    def working_set(self) -> int:
        """Pages that the tasks of the latest visits need together with those in use, pinned and real-time ones too."""
        names = {visit.task for visit in self.monitor.visits()[-_WORKING_SET_VISITS:]}
        numbers = [task.number for name, task in self._open.tasks.items() if name in names or task.gate.holders]
        return self._open.residency.blocks.needed_together(numbers)

    def _warn_of_thrashing(self, needed: int) -> None:
        slots = self._open.residency.blocks.slots
        if needed <= slots:
            return
        self._warned = True
        _log.warning(
            "the tasks in use need %d pages and the arena holds %d: switches load again what others have evicted; "
            "a budget of %s would hold them all",
            needed,
            slots,
            self._open.memory.enough(needed),
        )


class TaskHolds:
    """Brings tasks in, lets their layers read while they are held, and tells of every switch.

    A task may be the current one, held by a block, pinned, or held for real time. Safe to use from several threads.
    Whoever holds a task is `uninterrupted`: a hold is worth nothing until he knows of it.

    Attributes:
        current: the task that was activated last, until it is left.
        activating: the lock of the current task and the bundle, for whoever changes either, or predicts.
        prefetching: what is told of every visit; None where nothing is to be prefetched.
    """

    def __init__(
        self, opened: OpenBundle, monitor: TaskMonitor, real_time: Collection[str], *, warns: bool = True
    ) -> None:
        """Nobody holds a task; pages of those in ``real_time`` are read before others'. ``warns`` is of `SwitchLog`."""
        self.current: str | None = None
        self.activating = threading.RLock()
        self.switches = SwitchLog(opened, monitor, warns=warns)
        self.prefetching: EnginePrefetching | None = None
        self._open = opened
        self._monitor = monitor
        self._real_time = real_time
        self._lock = threading.Lock()  # pins; never kept while storage works

    def activate(self, name: str, *, wait: bool, timeout: float | None) -> Any:
        """Make a task the current one. Returns its module. Arguments and errors are those of `Engine.activate`."""
        deadline = Deadline.after(timeout)
        if not deadline.acquire(self.activating):
            raise BusyError(
                "another thread's activation, prediction or reload was still going on when the timeout passed; "
                "try again, or allow more time"
            )
        try:
            previous = self.current
            if name == previous:
                task = self._open.tasks[name]
                if task.gate.is_ready or not (wait or task.gate.has_failed):
                    self._tell(self._monitor.record(name), name, LoadStats())
                    return task.module
                previous = None
            # Its time left is from when the module is built.
            module = self.hold(name, previous, wait=wait, timeout=deadline.left())
            still_held, self.current = self.current, name
            if still_held is not None:
                self.release(still_held)
            return module
        finally:
            self.activating.release()

    def leave_current(self) -> None:
        if self.current is not None:
            name, self.current = self.current, None
            self.release(name)

    def hold(
        self,
        name: str,
        previous: str | None = None,
        *,
        wait: bool = True,
        timeout: float | None = None,
        is_visit: bool = True,
    ) -> Any:
        """Hold a task until `release`. Returns its module. Errors are those of `Engine.task` and `Engine.activate`.

        Args:
            name: of the task.
            previous: the current task, which is left for it if both don't fit together.
            wait: whether to return only when all pages are there.
            timeout: seconds to wait for room and for other switches.
            is_visit: whether somebody asked for the task; to keep it in memory is no visit.
        """
        with self.explained(previous):
            task, module = self._open.task_and_module(name)
            left = None if previous is None else self._open.tasks[previous]
            start = time.perf_counter()
            request = SwitchRequest(
                task.number,
                name,
                previous=None if left is None else left.number,
                give_up=(lambda: None) if left is None else self.leave_current,
                deadline=Deadline.after(timeout),
                wait=wait,
                priority=Priority.REAL_TIME if name in self._real_time else Priority.ON_DEMAND,
                ask_uses=partial(self.uses_after, task.number),
                tables=task.tables,
                previous_tables=None if left is None else left.tables,
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
            before = self.switches.record_switch(name, stats, seconds, waited=waited, is_visit=is_visit)
            if is_visit:
                self._tell(before, name, stats)
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
    def pin(self, name: str) -> None:
        """Hold a task until `unpin`."""
        self.hold(name, is_visit=False)
        with self._lock:
            self._open.tasks[name].pins += 1

    @uninterrupted
    def unpin(self, name: str) -> None:
        """Undo one `pin`. Errors are those of `Engine.unpin`."""
        task = self._open.task(name)
        with self._lock:
            if not task.pins:
                raise TaskNotActiveError(f"task {name!r} is not pinned")
            task.pins -= 1
        self.release(name)

    def check_unpinned(self, name: str) -> None:
        """Errors are those of `Engine.check_unpinned`."""
        if self._open.task(name).pins or name in self._real_time:
            raise BusyError(f"expected a task that may leave, found {name!r}, which is pinned or held for real time")

    def uses_after(self, number: int) -> npt.NDArray[np.float64]:
        """Expected uses of each task, by number, once this one is entered, for eviction; 0 for tasks that have left."""
        tasks = self._open.tasks
        numbers = [task.number for task in tasks.values()]
        uses = np.zeros(self._open.residency.blocks.tasks)
        uses[numbers] = expected_uses_after(self._monitor.followed(list(tasks)), numbers.index(number))
        return uses

    @contextmanager
    def explained(self, leaving: str | None = None) -> Iterator[None]:
        """Complete errors of loading: with the bundle's path, and with who uses the tasks that leave no room.

        Args:
            leaving: the task that is left for the one that is loaded.
        """
        try:
            yield
        except BundleError:
            with of_bundle(self._open.bundle.path):
                raise
        except TaskTooLargeError:
            raise
        except BudgetError as error:
            raise BudgetError(f"{error} {self._in_use(leaving)}".rstrip(), error.smallest) from error

    def _tell(self, before: str | None, name: str, stats: LoadStats) -> None:
        if self.prefetching is not None:
            self.prefetching.tell(before, name, stats)

    def _in_use(self, leaving: str | None) -> str:
        """A sentence about each task in use but the one that is left; empty if there is none."""
        said = []
        for name, task in self._open.tasks.items():
            users, known = [], task.pins
            if name in self._real_time:
                known += 1
                users.append("for real time: open an engine without it in real_time")
            if task.pins:
                users.append(f"as it is pinned: call engine.unpin({name!r})")
            if name == self.current:
                known += 1
                if name != leaving:
                    users.append("by engine.activate or predict: call engine.deactivate()")
            if name != leaving and task.gate.holders > known:
                users.append("by engine.task: end its 'with' block")
            if users:
                said.append(f"Task {name!r} is in use {', and '.join(users)}.")
        return " ".join(said)
