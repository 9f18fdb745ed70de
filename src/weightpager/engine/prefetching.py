"""`Prefetching`: an engine's prefetcher, if it has one, and the policy that it goes by."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.engine.open_bundle import OpenBundle
from weightpager.engine.report import PrefetchReport
from weightpager.runtime.paging.state import LoadStats
from weightpager.runtime.prediction.markov import new_predictor
from weightpager.runtime.prediction.planner import CallablePredictor, Planner
from weightpager.runtime.prediction.predictor import (
    Forecast,
    LearningPredictor,
    PredictionScore,
    TransitionPredictor,
    replay,
)
from weightpager.runtime.prediction.task_monitor import TaskMonitor
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.runtime.prefetch.prefetcher import Prefetcher, PrefetchPolicy, Switched
from weightpager.runtime.prefetch.virtual_arena import PrefetchTrial, VirtualArena
from weightpager.store import StorageModel
from weightpager.trace_file import Visit


def _trial(opened: OpenBundle, held: Iterable[str]) -> PrefetchTrial:
    """A trial of prefetch under the present budget."""
    blocks, numbers = opened.residency.blocks, [opened.tasks[name].number for name in held]
    needs = [blocks.needs(task) for task in range(blocks.tasks)]
    pages = 1 + max((int(need[-1]) for need in needs if len(need)), default=0)
    return PrefetchTrial(
        lambda: VirtualArena(
            needs,
            pages,
            blocks.slots,
            opened.bundle.page_bytes,
            StorageModel(),
            opened.reads.span,
            numbers,
            reads=opened.reads_in_flight,
        )
    )


class Prefetching:
    """Prefetches between switches. Safe for several threads."""

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor, wanted: bool | Planner, held: Collection[str]) -> None:
        """Prefetch from now on. Tasks that are ``held`` never leave memory."""
        self._open, self._monitor, self._held = opened, monitor, held
        self._planner = None if isinstance(wanted, bool) else wanted
        self.prefetcher = Prefetcher(opened.residency, opened.bundle.page_bytes, self.policy())

    def policy(self) -> PrefetchPolicy:
        """A policy for the bundle, the budget and the visits as they are now."""
        opened, monitor = self._open, self._monitor
        names = [""] * opened.residency.blocks.tasks  # by the numbers of tasks; of those that have left empty
        for name, task in opened.tasks.items():
            names[task.number] = name
        now = time.monotonic()
        learning = new_predictor(len(names), self._prior(len(names)))
        planner = self._planner
        predictor: TransitionPredictor = learning if planner is None else CallablePredictor(planner, names, learning)
        replay(predictor, monitor.visits(), names)
        if monitor.current is None:
            predictor.interrupt()  # the visits are those of an earlier run
        size = opened.residency.differential_pages * opened.bundle.page_bytes
        seconds = StorageModel().seconds(0, round(size))
        dwell = monitor.dwell_seconds()
        expected = ExpectedUses(predictor, monitor.followed(names), [dwell.get(name, ()) for name in names], seconds)
        current = opened.tasks.get(monitor.current or "")
        expected.current = None if current is None else current.number
        return PrefetchPolicy(expected, _trial(opened, self._held), size, now)

    def _prior(self, count: int) -> npt.NDArray[np.float64] | None:
        """The bundle's transition matrix, by the numbers of so many tasks; None where some have left since."""
        numbers = [task.number for task in self._open.tasks.values()]
        if len(numbers) != count:
            return None
        prior = np.zeros((count, count))
        prior[np.ix_(numbers, numbers)] = self._open.bundle.manifest.transitions
        return prior

    def renew(self) -> None:
        """Go by the bundle and the budget as they are now."""
        self.prefetcher.renew(self.policy())

    def tell(self, task: int, stats: LoadStats) -> None:
        """A task, by its number, has become the current one. Takes no time."""
        self.prefetcher.tell(Switched(task, time.monotonic(), stats))

    def report(self) -> PrefetchReport:
        score, pages = self.prefetcher.score, self._open.residency.prefetched
        wasted = pages.wasted * self._open.bundle.page_bytes
        return PrefetchReport(self.prefetcher.pays, pages, wasted, score.hit_rate, score.log_loss)

    def close(self) -> None:
        """Begin nothing more, and end the thread unless a predictor hangs in it."""
        self.prefetcher.close()


_MOST_VISITS = 2000
"""Visits of the history that are learnt from. What was earlier would have faded."""


@dataclass(frozen=True, eq=False)
class ForecastReport:
    """What the past says of the next task. Probabilities of a mapping sum to 1.

    Attributes:
        next: task → probability that it is the next one, by all that has come before; empty while no task is current.
        seconds: expected seconds until it comes; None if nothing can be said.
        after: task → task → probability to follow it, whatever came before it.
        switches: number of switches that were foretold, in hindsight where nobody had asked before they came.
        hit_rate: share of them that led to the likeliest task.
        log_loss: bits per switch that forecasts have missed by, the less the better.
    """

    next: Mapping[str, float]
    seconds: float | None
    after: Mapping[str, Mapping[str, float]]
    switches: int
    hit_rate: float
    log_loss: float


class Forecasts:
    """Learns from the visits whenever it is asked, with or without prefetch. Safe to use from several threads.

    It has a predictor of its own, since the prefetcher's belongs to a thread that a user's planner may hang.
    """

    def __init__(self, opened: OpenBundle, monitor: TaskMonitor) -> None:
        self._opened = opened
        self._monitor = monitor
        self._lock = threading.Lock()
        self._begin(opened.bundle)

    def now(self) -> ForecastReport | None:
        """The forecast as of now; None before the first visit."""
        with self._lock:
            if self._bundle is not self._opened.bundle:
                self._begin(self._opened.bundle)
            self._catch_up()
            return None if self._last is None else self._report(self._monitor.current is not None)

    def _begin(self, bundle: Bundle) -> None:
        """Start with a bundle's tasks and no visits."""
        self._bundle, self._names = bundle, list(bundle.tasks)
        self._scored = _ScoredPredictor(new_predictor(len(self._names), bundle.manifest.transitions))
        self._last: Visit | None = None

    def _catch_up(self) -> None:
        visits = self._monitor.visits()[-_MOST_VISITS:]
        fresh = list(takewhile(lambda visit: visit is not self._last, reversed(visits)))[::-1]
        replay(self._scored, fresh, self._names)
        self._last = visits[-1] if visits else None

    def _report(self, in_a_visit: bool) -> ForecastReport:
        predictor, score = self._scored.predictor, self._scored.score
        forecast = self._scored.forecast(time.monotonic())
        return ForecastReport(
            next=self._by_name(forecast.next) if in_a_visit else {},
            seconds=forecast.seconds if in_a_visit else None,
            after={name: self._by_name(predictor.after(task)) for task, name in enumerate(self._names)},
            switches=score.forecasts,
            hit_rate=score.hit_rate,
            log_loss=score.log_loss,
        )

    def _by_name(self, chances: npt.NDArray[np.float64]) -> dict[str, float]:
        return dict(zip(self._names, chances.tolist(), strict=True))


class _ScoredPredictor(TransitionPredictor):
    """A predictor, and how good its forecasts have been."""

    def __init__(self, predictor: LearningPredictor) -> None:
        self.predictor = predictor
        self.score = PredictionScore()
        self._current: int | None = None

    def observe(self, task: int, seconds: float) -> None:
        if self._current not in (None, task):
            self.score.add(self.forecast(seconds), task)
        self._current = task
        self.predictor.observe(task, seconds)

    def forecast(self, seconds: float) -> Forecast:
        return self.predictor.forecast(seconds)

    def interrupt(self) -> None:
        self._current = None
        self.predictor.interrupt()
