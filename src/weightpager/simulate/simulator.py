"""A trace of task switches, replayed in virtual time: what each would wait for, on a device that needn't be there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.runtime.planning.pages import Pages, PrefetchCounts, TaskPages
from weightpager.runtime.prediction.markov import new_predictor
from weightpager.runtime.prediction.task_monitor import expected_uses_after
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial
from weightpager.runtime.prefetch.virtual_arena import VirtualArena, Wait
from weightpager.store import StorageModel, span_of
from weightpager.trace_file import Visit

Floats = npt.NDArray[np.float64]


class UsePredictor(Protocol):
    """Says which tasks will be used; `weightpager.runtime.prefetch.expected_uses.ExpectedUses` learns it."""

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time."""

    def uses(self, seconds: float) -> Floats | None:
        """Expected uses of each task from now on [tasks]; None if nothing can be said."""

    def uses_after(self, task: int) -> Floats | None:
        """Expected uses of each task after one that comes now [tasks]; None evicts what was used least recently."""


@dataclass(frozen=True)
class Device:
    """What a bundle runs on: an arena of so many slots, storage, and at most so many reads in flight.

    Unless told otherwise there are as many as in an engine.
    """

    slots: int
    storage: StorageModel
    reads: int = EngineConfig.io_threads


class Recency:
    """Predicts nothing: what was used least recently goes first, and nothing is prefetched."""

    def observe(self, task: int, seconds: float) -> None: ...

    def uses(self, seconds: float) -> None: ...

    def uses_after(self, task: int) -> None: ...


class CountedReuse:
    """Counts which task followed which, as an engine without prefetch does. Implements `UsePredictor`."""

    def __init__(self, tasks: int) -> None:
        self._followed = np.zeros((tasks, tasks), np.int64)
        self._current: int | None = None

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        if self._current is not None and task != self._current:
            self._followed[self._current, task] += 1
        self._current = task

    def uses(self, seconds: float) -> None:
        """Nothing is prefetched."""

    def uses_after(self, task: int) -> Floats:
        return expected_uses_after(self._followed, task)


@dataclass(frozen=True)
class Simulation:
    """What a replay found: the wait of each visit, of which the first fills an empty arena, and what was prefetched."""

    waits: Sequence[Wait]
    prefetched: PrefetchCounts
    page_bytes: int

    @property
    def switches(self) -> Floats:
        """Seconds of every wait but the first [switches]."""
        return np.array([wait.seconds for wait in self.waits[1:]])


class Simulator:
    """Replays traces of a bundle's tasks.

    Attributes:
        needs: each task's pages, ascending.
        largest_task: number of pages of the task that has most.
        all_pages: number of all pages.
        differential_bytes: bytes to load for an average switch.
    """

    def __init__(self, bundle: Bundle) -> None:
        """Read which pages each of the bundle's tasks needs, and nothing else."""
        self.page_bytes = bundle.page_bytes
        self.needs: list[Pages] = [bundle.pages_of(task) for task in bundle.tasks]
        self.numbers = bundle.task_numbers
        self.all_pages = len(bundle.pages)
        self._span = span_of(bundle)
        self.largest_task = max(len(need) for need in self.needs)
        self.differential_bytes = TaskPages(self.needs, self.all_pages).differential * self.page_bytes

    def learner(self, storage: StorageModel, prior: npt.ArrayLike | None = None) -> ExpectedUses:
        """A predictor that learns from the trace, as an engine's prefetcher does; ``prior`` is a transition matrix."""
        tasks = len(self.needs)
        return ExpectedUses.blank(
            new_predictor(tasks, prior), tasks, storage.seconds(0, round(self.differential_bytes))
        )

    def run(
        self,
        visits: Sequence[Visit],
        device: Device,
        predictor: UsePredictor,
        *,
        prefetch: bool = True,
        watch: Callable[[float, VirtualArena], None] | None = None,
    ) -> Simulation:
        """Replay a trace, oldest visit first; each task fits.

        A task runs from when all its pages are there for as long as lies between its visit's start and the next one's.
        The predictor is new, or has observed what came before. ``watch`` is given the time and the arena when a task is
        in place, and when it has run.
        """
        arena = self.arena(device)
        waits: list[Wait] = []
        clock = _Clock(predictor)
        trial = PrefetchTrial(lambda: self.arena(device)) if prefetch else None
        for visit, following in zip(visits, [*visits[1:], visits[-1]], strict=True):
            task, dwell = self.numbers[visit.task], max(0.0, following.start - visit.start)
            expected_uses = predictor.uses_after(task)
            waits.append(arena.switch(task, expected_uses))
            if trial is not None and len(waits) > 1:  # nobody could have foreseen the first
                trial.dwell(clock.elapsed, clock.uses_at, device.storage)
                trial.switch(task, expected_uses)
            clock.switched(task, waits[-1].seconds)
            if watch is not None:
                watch(clock.now, arena)
            if trial is not None and trial.pays:
                arena.dwell(dwell, clock.uses_at)
            clock.elapsed = dwell
            if watch is not None:
                watch(clock.now, arena)
        return Simulation(waits, arena.counts, self.page_bytes)

    def arena(self, device: Device, capacity: int | None = None) -> VirtualArena:
        """An empty arena on a device, that may have ``capacity`` slots later."""
        return VirtualArena(
            self.needs,
            self.all_pages,
            device.slots,
            self.page_bytes,
            device.storage,
            self._span,
            reads=device.reads,
            capacity=capacity,
        )


class _Clock:
    """Virtual time, by which the predictor is asked; ``elapsed`` are the seconds since the last task was in place."""

    def __init__(self, predictor: UsePredictor) -> None:
        self._predictor = predictor
        self._since = self.elapsed = 0.0

    @property
    def now(self) -> float:
        return self._since + self.elapsed

    def switched(self, task: int, waited: float) -> None:
        """A task was asked for now, and was in place after waiting."""
        self._since = self.now + waited
        self.elapsed = 0.0
        self._predictor.observe(task, self._since)

    def uses_at(self, elapsed: float) -> Floats | None:
        """Expected uses of each task at so many seconds after the last switch."""
        return self._predictor.uses(self._since + elapsed)
