"""`Prefetching`: an engine's prefetcher, if it has one, and the policy that it goes by."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.report import PrefetchReport
from weightpager.runtime.paging.state import LoadStats
from weightpager.runtime.prediction.markov import new_predictor
from weightpager.runtime.prediction.planner import CallablePredictor, Planner
from weightpager.runtime.prediction.predictor import TransitionPredictor, replay
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.runtime.prefetch.prefetch_target import PrefetchTarget
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial
from weightpager.runtime.prefetch.prefetcher import Prefetcher, PrefetchPolicy, Switched
from weightpager.runtime.prefetch.virtual_arena import VirtualArena
from weightpager.store import StorageModel


class EnginePrefetching(Protocol):
    """Who prefetches into an engine's arena: its own prefetcher, or one that several bundles share."""

    def tell(self, before: str | None, name: str, stats: LoadStats) -> None:
        """A task was asked for, after another one of the engine's, and this was loaded for it. Takes no time."""

    def renew(self) -> None:
        """Go by the bundle and the budget as they are now."""

    def report(self) -> PrefetchReport: ...

    def close(self) -> None:
        """Prefetch nothing more into the arena."""


def new_arenas(opened: OpenBundle, held: Collection[str]) -> Callable[[], VirtualArena]:
    """What makes empty arenas in virtual time, under the present budget. Tasks that are ``held`` never leave memory.

    It keeps nothing of the bundle in memory.
    """
    blocks, numbers = opened.residency.blocks, [opened.tasks[name].number for name in held]
    slots, page_bytes, span, reads = blocks.slots, opened.bundle.page_bytes, opened.reads.span, opened.reads_in_flight

    def new() -> VirtualArena:
        needs = [blocks.needs(task) for task in range(blocks.tasks)]
        pages = 1 + max((int(need[-1]) for need in needs if len(need)), default=0)
        return VirtualArena(needs, pages, slots, page_bytes, StorageModel(), span, numbers, reads=reads)

    return new


def new_policy(
    monitor: TaskMonitor, names: Sequence[str], predictor: TransitionPredictor, targets: Sequence[PrefetchTarget]
) -> PrefetchPolicy:
    """A policy by what a monitor's visits say of tasks, whose numbers' names these are.

    The predictor has seen nothing yet.
    """
    now = time.monotonic()
    replay(predictor, monitor.visits(), names)
    if monitor.current is None:
        predictor.interrupt()  # the visits are those of an earlier run
    dwell = monitor.dwell_seconds()
    dwells = [dwell.get(name, ()) for name in names]
    expected = ExpectedUses(predictor, monitor.followed(names), dwells, load_seconds=0.0)  # the prefetcher knows
    expected.current = names.index(monitor.current) if monitor.current in names else None
    return PrefetchPolicy(expected, targets, now)


def predictor_of(
    names: Sequence[str], planner: Planner | None, prior: npt.NDArray[np.float64] | None = None
) -> TransitionPredictor:
    """Who says which of these tasks comes next: a planner if there is one, else what was learnt since the prior."""
    learning = new_predictor(len(names), prior)
    return learning if planner is None else CallablePredictor(planner, names, learning)


def target_of(opened: OpenBundle, tasks: npt.NDArray[np.int64], trial: PrefetchTrial) -> PrefetchTarget:
    """The arena of a bundle; ``tasks`` are the numbers that its tasks have among all that are foretold."""
    residency, page_bytes = opened.residency, opened.bundle.page_bytes
    return PrefetchTarget(residency, page_bytes, tasks, trial, residency.differential_pages * page_bytes)


def report_of(opened: OpenBundle, prefetcher: Prefetcher) -> PrefetchReport:
    """What a prefetcher does for an arena."""
    score, pages = prefetcher.score, opened.residency.prefetched
    wasted = pages.wasted * opened.bundle.page_bytes
    return PrefetchReport(prefetcher.pays, pages, wasted, score.hit_rate, score.log_loss)


class Prefetching:
    """Prefetches an engine's pages between its switches. Safe for several threads."""

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, wanted: bool | Planner, held: Collection[str]) -> None:
        """Prefetch from now on. Tasks that are ``held`` never leave memory."""
        self._open, self._monitor, self._held = opened, monitor, held
        self._planner = None if isinstance(wanted, bool) else wanted
        self.prefetcher = Prefetcher(self.policy())

    def policy(self) -> PrefetchPolicy:
        """A policy for the bundle, the budget and the visits as they are now."""
        opened = self._open
        names = [""] * opened.residency.blocks.tasks  # by the numbers of tasks; of those that have left empty
        for name, task in opened.tasks.items():
            names[task.number] = name
        predictor = predictor_of(names, self._planner, self._prior(len(names)))
        trial = PrefetchTrial(new_arenas(opened, self._held))
        return new_policy(self._monitor, names, predictor, [target_of(opened, np.arange(len(names)), trial)])

    def _prior(self, count: int) -> npt.NDArray[np.float64] | None:
        """The bundle's transition matrix, by the numbers of so many tasks; None where some have left since."""
        numbers = [task.number for task in self._open.tasks.values()]
        if len(numbers) != count:
            return None
        prior = np.zeros((count, count))
        prior[np.ix_(numbers, numbers)] = self._open.bundle.manifest.transitions
        return prior

    def renew(self) -> None:
        self.prefetcher.renew(self.policy())

    def tell(self, before: str | None, name: str, stats: LoadStats) -> None:
        if before != name:
            self.prefetcher.tell(Switched(self._open.tasks[name].number, time.monotonic(), stats))

    def report(self) -> PrefetchReport:
        return report_of(self._open, self.prefetcher)

    def close(self) -> None:
        """Begin nothing more, and end the thread unless a predictor hangs in it."""
        self.prefetcher.close()
