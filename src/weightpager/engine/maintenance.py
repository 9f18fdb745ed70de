"""What changes under an engine's tasks while they run: the budget, pages, what is kept and prefetched, the bundle."""

from __future__ import annotations

import threading
from functools import partial

from weightpager.config import EngineConfig, parse_size
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.prefetching import uses_after
from weightpager.engine.task_holds import TaskHolds
from weightpager.engine.view import EngineView
from weightpager.interrupts import acquired, uninterrupted
from weightpager.runtime.paging.state import SwitchRequest
from weightpager.runtime.prediction.task_monitor import TaskMonitor


class EngineMaintenance(EngineView):
    """The part of `Engine` that changes its memory and its bundle."""

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, config: EngineConfig) -> None:
        super().__init__(opened, monitor, config)
        self._activating = threading.RLock()  # the current task and the bundle: whoever changes either, or predicts
        self._changing = threading.Lock()  # budget or bundle
        self._holds = TaskHolds(opened, self._switches, self._real_time, self._prefetching)

    def pin(self, name: str) -> None:
        """Load a task and keep its pages until `unpin`, so that switching to it never waits for storage.

        That is no visit. As many calls of `unpin` undo it as there were of this. Errors are those of `task`.
        """
        self._check_open()
        with self._explained():
            self._holds.pin(name)

    def unpin(self, name: str) -> None:
        """Undo one `pin`.

        Raises:
            UnknownTaskError: the bundle has no such task.
            TaskNotActiveError: the task isn't pinned.
        """
        self._check_process()
        self._holds.unpin(name)

    @uninterrupted
    def prefetch(self, name: str) -> int:
        """Begin to load a task that comes soon, once no switch is going on. Returns at once.

        They go where no task in use has any. Whatever somebody waits for is read first, and a switch that must load
        takes back what hasn't begun; so does a task that is named later where both have no room. Nothing keeps the
        pages once they are there: `pin` does.

        Returns:
            How many pages were queued.

        Raises:
            UnknownTaskError: the bundle has no such task.
            BudgetError: its pages don't fit beside those in use; nothing has changed.
            BusyError: the task has just left the bundle.
            StoreTimeoutError: reads that hang have memory that is needed; what was named before may be taken back.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        number = self._open.task(name).number
        ask_uses = partial(uses_after, number, self._open, self.monitor)
        with self._explained():
            return self._residency.prefetch(SwitchRequest(number, name, ask_uses=ask_uses))

    @uninterrupted
    def evict(self) -> int:
        """Drop all pages that no task in use needs, so that a later switch reads them again. Returns how many went."""
        self._check_process()
        return self._residency.evict_unused()

    @uninterrupted
    def set_budget(self, budget: str | int) -> None:
        """Use more or less memory from now on. The arena stays where it is, and so do the modules.

        Pages of tasks that aren't in use go if they must, and their memory goes back to the machine. More than the
        whole bundle needs isn't used. More than the machine has is said in the log.

        Args:
            budget: memory for weights, such as ``"64MiB"``, or bytes.

        Raises:
            ConfigError: it is no size.
            BudgetError: the tasks in use need more, or not even the smallest task would fit; nothing has changed.
            StoreTimeoutError: reads that hang have memory that must go; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        with acquired(self._changing):
            self._open.resize(parse_size(budget, "budget"))
            self._prefetching.renew()

    def repair(self) -> list[int]:
        """Reload those pages in place that `verify` finds damaged. Returns their numbers.

        A forward that runs meanwhile may have read the damage; one that starts later reads what is right.

        Raises:
            StoreError, PageCorruptError: storage doesn't have a page as it should be.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        return self._open.page_check.repair()

    @uninterrupted
    def reload(self) -> BundleChange:
        """Take over what has become of the bundle since: tasks that were added, removed, or compiled anew.

        Other tasks go on, also while this runs; their pages are known by content, wherever they lie now. Modules of
        tasks that left or changed can't be entered any more. A budget that wasn't stated grows with the bundle.

        Returns:
            What has changed.

        Raises:
            BundleError, StoreError: the bundle is damaged, of another model, or has more new pages than there is room
                for beside those in use; nothing has changed.
            BusyError: a task that was removed or changed is in use; nothing has changed.
            BudgetError: the bundle's parameters leave too little room for the tasks in use; nothing has changed.
            EngineClosedError: the engine has been closed.
        """
        self._check_open()
        with acquired(self._activating), acquired(self._changing):
            change = self._open.reload()
            self._prefetching.renew()
            return change
