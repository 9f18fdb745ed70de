"""What an engine tells about itself: reports, and a map of its pages."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.engine.open_bundle import OpenBundle
from weightpager.runtime.memory.memory_budget import MemoryUse
from weightpager.runtime.paging.state import LoadStats
from weightpager.runtime.planning.pages import Pages, PrefetchCounts
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.runtime.rows import RowReport


@dataclass(frozen=True)
class SwitchReport:
    """One switch.

    Attributes:
        from_task: the task that was asked for before; None at the first switch.
        to_task: the task that was switched to.
        pages: pages that were read for it.
        bytes: bytes of these pages.
        reads: reads that brought them.
        load_seconds: seconds spent reading; zero where the switch didn't wait for its pages.
        seconds: from planning to all pages checked and in place, without the building of a module at first use; where
            the switch didn't wait, until it returned.
        waited: whether the switch waited for its pages.
    """

    from_task: str | None
    to_task: str
    pages: int
    bytes: int
    reads: int
    load_seconds: float
    seconds: float
    waited: bool = True


@dataclass(frozen=True)
class PrefetchReport:
    """What prefetching does.

    Attributes:
        pays: whether it goes on; it rests while it would cost more than it saves.
        pages: the pages that it has brought.
        hit_rate: share of the switches whose task was the likeliest by the forecast.
        log_loss: bits per switch that forecasts have missed by, the less the better.
    """

    pays: bool
    pages: PrefetchCounts
    hit_rate: float
    log_loss: float


@dataclass(frozen=True)
class EngineReport:
    """The state of an engine.

    Attributes:
        budget: bytes that may be used; `memory` says for what.
        memory: bytes by purpose.
        available_memory: bytes that this process could take beside what it has, by the machine and by the limits of its
            control group; None if unknown.
        slots: pages that fit into the arena.
        resident_pages: pages in it.
        locked_pages: pages of tasks in use.
        active: tasks in use.
        direct_io: whether reads bypass the page cache.
        backend: what runs tasks, ``"native"`` or ``"torch"``.
        kernel: instruction set of the kernels.
        bytes_read: bytes that were read from storage since the engine was opened.
        working_set_pages: number of pages that the tasks of the latest visits and those in use need together; more than
            ``slots`` means that switches load again what others have just evicted.
        reloaded_pages: number of pages that were loaded though they had been in the arena before.
        switches: the latest switches, oldest first.
        prefetch: what prefetching does; None if nothing is prefetched.
        rows: what is known of rows on demand; None if there are none, as on a GPU.
    """

    budget: int
    memory: MemoryUse
    available_memory: int | None
    slots: int
    resident_pages: int
    locked_pages: int
    active: tuple[str, ...]
    direct_io: bool
    backend: str
    kernel: str
    bytes_read: int
    working_set_pages: int
    reloaded_pages: int
    switches: tuple[SwitchReport, ...]
    prefetch: PrefetchReport | None = None
    rows: RowReport | None = None


@dataclass(frozen=True, eq=False)
class ResidencyMap:
    """What is in the arena, by layer and task. A picture of one moment: loads go on meanwhile.

    Attributes:
        layers: int32 [pages], the layer that each page belongs to.
        resident: whether each page is in the arena, bool [pages].
        needs: a task's pages, ascending, by task.
    """

    layers: npt.NDArray[np.int32]
    resident: npt.NDArray[np.bool_]
    needs: Mapping[str, Pages]

    def by_layer(self, task: str) -> npt.NDArray[np.int64]:
        """How many of a task's pages are resident, and how many it needs, in each layer: int64 [layers, 2]."""
        count = int(self.layers.max(initial=-1)) + 1
        need = self.needs[task]
        here = need[self.resident[need]]
        counts = [np.bincount(self.layers[pages], minlength=count) for pages in (here, need)]
        return np.stack(counts, axis=1).astype(np.int64)

    def share(self, task: str) -> float:
        """The share of a task's pages that is resident, 0 to 1; 1 for a task without pages."""
        need = self.needs[task]
        return float(self.resident[need].mean()) if len(need) else 1.0


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
        pages = stats.bytes // self._open.memory.needs.page_bytes
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
