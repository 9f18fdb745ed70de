"""`Prefetching`: an engine's prefetcher, if it has one, and the policy that it goes by."""

from __future__ import annotations

import time
from collections.abc import Collection

from weightpager.engine.opened.open_bundle import OpenBundle
from weightpager.engine.prefetch_policy import prefetch_policy
from weightpager.engine.report import PrefetchReport
from weightpager.runtime.history.task_monitor import TaskMonitor
from weightpager.runtime.paging.switch_request import LoadStats
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prefetch.prefetcher import Prefetcher, PrefetchPolicy, Switched


class Prefetching:
    """Prefetches between switches, if that is wanted; else nothing here does anything. Safe for several threads.

    Attributes:
        prefetcher: the one that does it; None before `start`, and where nothing is to be prefetched.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, wanted: bool | Planner, held: Collection[str]) -> None:
        """Nothing is prefetched yet.

        Args:
            opened: the bundle.
            monitor: knows the visits.
            wanted: whether to prefetch, or a planner that knows the next task.
            held: tasks that never leave memory.
        """
        self._open, self._monitor, self._wanted, self._held = opened, monitor, wanted, held
        self.prefetcher: Prefetcher | None = None

    def start(self) -> None:
        """Prefetch from now on."""
        if self._wanted:
            self.prefetcher = Prefetcher(self._open.residency, self._open.bundle.page_bytes, self.policy())

    def policy(self) -> PrefetchPolicy:
        """A policy for the bundle, the budget and the visits as they are now."""
        planner = None if isinstance(self._wanted, bool) else self._wanted
        return prefetch_policy(self._open, self._monitor, planner, self._held)

    def renew(self) -> None:
        """Go by the bundle and the budget as they are now."""
        if self.prefetcher is not None:
            self.prefetcher.renew(self.policy())

    def tell(self, task: int, stats: LoadStats) -> None:
        """A task, by its number, has become the current one. Takes no time."""
        if self.prefetcher is not None:
            self.prefetcher.tell(Switched(task, time.monotonic(), stats))

    def report(self) -> PrefetchReport | None:
        """What it does; None where nothing is to be prefetched."""
        if self.prefetcher is None:
            return None
        score = self.prefetcher.score
        return PrefetchReport(self.prefetcher.pays, self._open.residency.prefetched, score.hit_rate, score.log_loss)

    def close(self) -> None:
        """Begin nothing more, and end the thread unless a predictor hangs in it."""
        if self.prefetcher is not None:
            self.prefetcher.close()
