"""The latest switches of an engine, and what the tasks that they went to need together."""

from __future__ import annotations

import logging
import threading
from collections import deque

from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.report import SwitchReport
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.paging.switch_request import LoadStats

_SWITCHES_KEPT = 1000
_WORKING_SET_VISITS = 32
"""Latest visits whose tasks make up the working set."""

_log = logging.getLogger(__name__)


class SwitchLog:
    """Keeps reports of switches; says once if the tasks in use need more than the arena holds. Safe for many threads.

    Args:
        opened: whose tasks they are.
        monitor: of the visits.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor) -> None:
        self._open = opened
        self._monitor = monitor
        self._lock = threading.Lock()
        self._reports: deque[SwitchReport] = deque(maxlen=_SWITCHES_KEPT)
        self._warned = False

    def entered(self, name: str, stats: LoadStats, seconds: float, *, waited: bool, asked: bool) -> str | None:
        """A task has been entered, which the monitor is told too; the one that was asked for before.

        Args:
            name: of the task.
            stats: what loading cost.
            seconds: that entering it took.
            waited: whether all pages were waited for.
            asked: whether it was asked for; what is only kept in memory is no visit.
        """
        before = self._monitor.record(name) if asked else self._monitor.current
        pages = stats.bytes // self._open.bundle.page_bytes
        report = SwitchReport(before, name, pages, stats.bytes, stats.reads, stats.seconds, seconds, waited)
        with self._lock:
            self._reports.append(report)
            if pages and not self._warned and self._open.residency.blocks.reloads:
                self._warn_of_thrashing(self.working_set())
        return before

    @property
    def last(self) -> SwitchReport | None:
        """The latest one; None before the first."""
        with self._lock:
            return self._reports[-1] if self._reports else None

    def latest(self) -> tuple[SwitchReport, ...]:
        """The latest ones, oldest first."""
        with self._lock:
            return tuple(self._reports)

    def working_set(self) -> int:
        """Pages that the tasks of the latest visits need together with those in use, pinned and real-time ones too."""
        names = {visit.task for visit in self._monitor.visits()[-_WORKING_SET_VISITS:]}
        numbers = [task.number for name, task in self._open.tasks.items() if name in names or task.gate.holders]
        return self._open.residency.blocks.needed_together(numbers)

    def _warn_of_thrashing(self, needed: int) -> None:
        slots = self._open.residency.blocks.slots
        if needed <= slots:
            return
        self._warned = True
        _log.warning(
            "the tasks in use need %d pages and the arena holds %d: switches load again what others have evicted; "
            "a budget of %d bytes would hold them all",
            needed,
            slots,
            self._open.memory.smallest_budget(needed),
        )
