"""`SwitchLog`: the latest switches of an engine, and a warning where they load the same pages again and again."""

from __future__ import annotations

import logging
import threading
from collections import deque

from weightpager.engine.opened.open_bundle import OpenBundle
from weightpager.engine.report import SwitchReport
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.paging.switch_request import LoadStats

_SWITCHES_KEPT = 1000
_WORKING_SET_VISITS = 32
"""Latest visits whose tasks make up the working set."""

_log = logging.getLogger(__name__)


class SwitchLog:
    """Keeps reports of switches. Says once if the tasks in use need more than the arena holds. Safe for many threads.

    Args:
        opened: whose tasks they are.
        monitor: keeps the visits.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor) -> None:
        self._open = opened
        self.monitor = monitor
        self._lock = threading.Lock()
        self._reports: deque[SwitchReport] = deque(maxlen=_SWITCHES_KEPT)
        self._warned = False

    def record_switch(self, name: str, stats: LoadStats, seconds: float, *, waited: bool, is_visit: bool) -> str | None:
        """Keep the report of a switch, and tell the monitor of a visit.

        Returns the task of the visit before, None without one.

        Args:
            name: of the task that was switched to.
            stats: what loading cost.
            seconds: that the switch took.
            waited: whether all pages were waited for.
            is_visit: whether somebody asked for the task; to keep it in memory is no visit.
        """
        before = self.monitor.record(name) if is_visit else self.monitor.current
        pages = stats.bytes // self._open.bundle.page_bytes
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
