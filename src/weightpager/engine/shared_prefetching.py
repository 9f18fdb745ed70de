"""`SharedPrefetching`: one prefetcher for all bundles that share a budget, by the one trace of their tasks."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import numpy as np

from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.prefetching import new_arenas, new_policy, predictor_of, report_of, target_of
from weightpager.engine.report import PrefetchReport
from weightpager.errors import WeightpagerError, first_line
from weightpager.runtime.paging.state import LoadStats
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.runtime.prefetch.expected_uses import Floats
from weightpager.runtime.prefetch.prefetch_target import PrefetchTarget
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial, Savings
from weightpager.runtime.prefetch.prefetcher import Prefetcher, PrefetchPolicy, Switched
from weightpager.runtime.shared_budget import PATIENCE, SharedBudget, by_bundle

if TYPE_CHECKING:
    from weightpager.engine.shared_bundle import SharedBundle

_LONG = 0.5
"""Seconds of an answer after which prefetching begins though it still goes on."""

_log = logging.getLogger(__name__)


class SharedPrefetching:
    """Prefetches what the next task probably needs, whichever bundle it belongs to. Safe for several threads.

    Pages go where their bundle has room, or in place of its pages that are worth less. Where no page pays in the shares
    as they are, a bundle may have more, or wake: from what others have that is worth less, and only while nobody
    enters a task or predicts. The bundle that was asked last stays awake, and its task stays where it is.
    """

    def __init__(
        self,
        shared: SharedBudget[SharedBundle],
        sharing: threading.RLock,
        monitor: TaskMonitor,
        wanted: bool | Planner,
    ) -> None:
        """Prefetch from now on.

        Args:
            shared: the budget and its bundles.
            sharing: the lock of whoever changes shares.
            monitor: which task of which bundle ran when.
            wanted: who says what comes next, by whole names; True for what the visits say.
        """
        self._shared, self._sharing, self._monitor = shared, sharing, monitor
        self._planner = None if isinstance(wanted, bool) else wanted
        self._parts: dict[str, BundlePrefetching] = {}  # of the bundles that are awake
        self._targets: dict[str, PrefetchTarget] = {}  # of the same
        self._trials: dict[str, PrefetchTrial] = {}  # of all that ever were
        self._savings = Savings()  # of all together
        self._changing = threading.Lock()
        self._names = self._all_names()
        self._told: str | None = None
        self.prefetcher = Prefetcher(self._policy(), self._make_room, self._let_answer)

    def part(self, bundle: SharedBundle, opened: OpenBundle) -> BundlePrefetching:
        """What the engine of a bundle has of it, which is just being opened."""
        return BundlePrefetching(self, bundle, opened)

    def put(self, part: BundlePrefetching) -> None:
        """Prefetch into a bundle as it is now."""
        with self._changing:
            self._parts[part.name] = part
            names = self._all_names()
            if names == self._names:
                self._targets[part.name] = self._target(part)
                self.prefetcher.aim([*self._targets.values()])
            else:
                self._names = names
                self._targets = {name: self._target(each) for name, each in self._parts.items()}
                self.prefetcher.renew(self._policy())

    def drop(self, part: BundlePrefetching) -> None:
        """Prefetch no more into a bundle that goes to sleep."""
        with self._changing:
            if self._parts.get(part.name) is part:  # it may have woken anew
                del self._parts[part.name], self._targets[part.name]
                self.prefetcher.aim([*self._targets.values()])

    def tell(self, name: str, stats: LoadStats) -> None:
        """A task, by its whole name, was asked for, and this was loaded for it."""
        if name == self._told or name != self._monitor.current:  # real-time tasks are no visits
            return
        self._told = name
        if name in self._names:
            self.prefetcher.tell(Switched(self._names.index(name), time.monotonic(), stats))

    def close(self) -> None:
        """Begin nothing more, and end the thread."""
        self.prefetcher.close()

    def _all_names(self) -> list[str]:
        return [f"{name}/{task}" for name, bundle in self._shared.bundles.items() for task in bundle.tasks]

    def _policy(self) -> PrefetchPolicy:
        predictor = predictor_of(self._names, self._planner)
        return new_policy(self._monitor, self._names, predictor, [*self._targets.values()])

    def _target(self, part: BundlePrefetching) -> PrefetchTarget:
        opened, name = part.opened, part.name
        tasks = np.full(opened.residency.blocks.tasks, -1)
        numbers = {whole: number for number, whole in enumerate(self._names)}
        for task, found in opened.tasks.items():
            tasks[found.number] = numbers.get(f"{name}/{task}", -1)
        arenas = new_arenas(opened, part.held)
        if name in self._trials:
            self._trials[name].move(arenas)
        else:
            self._trials[name] = PrefetchTrial(arenas, self._savings)
        return target_of(opened, tasks, self._trials[name])

    def _let_answer(self) -> None:
        """Wait for the answer that a switch was for: it needs all processors. A long one goes on beside prefetching."""
        time.sleep(PATIENCE)
        if self._sharing.acquire(timeout=_LONG):
            self._sharing.release()

    def _make_room(self, uses: Floats) -> bool:
        """Have shares move for what comes soon, unless somebody is at work. Returns whether they have."""
        if not self._sharing.acquire(blocking=False):
            return False
        try:
            bundles = self._shared.bundles
            may_wake = [name for name, bundle in bundles.items() if _may_wake(bundle)]
            current = bundles.get((self._monitor.current or "").partition("/")[0])
            if current is None or self._names != self._all_names() or len(uses) != len(self._names):
                return False
            release = current.hold()
            try:
                return self._shared.make_room_ahead(by_bundle(self._names, uses), may_wake)
            finally:
                release()
        except WeightpagerError as error:  # a bundle that can't be used is an error of who asks for it
            _log.info("nothing could be made ready: %s", first_line(error))
            return False
        finally:
            self._sharing.release()


def _may_wake(bundle: SharedBundle) -> bool:
    """Whether a bundle may be woken as it lies there now."""
    try:
        bundle.look()
    except WeightpagerError:  # whoever asks for it is told
        return False
    return not bundle.waits


class BundlePrefetching:
    """What one engine has of a prefetcher that bundles share: `EnginePrefetching`."""

    def __init__(self, shared: SharedPrefetching, bundle: SharedBundle, opened: OpenBundle) -> None:
        self.opened, self.held = opened, bundle.real_time
        self.name, self._shared = bundle.name, shared
        shared.put(self)

    def tell(self, before: str | None, name: str, stats: LoadStats) -> None:  # noqa: ARG002 - the protocol's
        self._shared.tell(f"{self.name}/{name}", stats)

    def renew(self) -> None:
        self._shared.put(self)

    def report(self) -> PrefetchReport:
        return report_of(self.opened, self._shared.prefetcher)

    def close(self) -> None:
        self._shared.drop(self)
