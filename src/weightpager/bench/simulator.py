"""A trace of task switches, replayed in virtual time: what each would wait for, on a device that needn't be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.runtime.prefetch_ledger import PrefetchCounts
from weightpager.runtime.prefetch_trial import PrefetchTrial
from weightpager.runtime.rehearsal import Rehearsal, Wait
from weightpager.runtime.switch_plan import Pages
from weightpager.runtime.task_monitor import Visit
from weightpager.store import StorageModel, span_of

Floats = npt.NDArray[np.float64]


class Foreteller(Protocol):
    """Says what will be used; `weightpager.runtime.outlook.Outlook` does, from what it has observed."""

    def observe(self, task: int, seconds: float) -> None:
        """A task became the current one at this time."""

    def uses(self, seconds: float) -> Floats | None:
        """Expected uses of each task from now on [tasks]; None if nothing can be said."""

    def uses_after(self, task: int) -> Floats | None:
        """Expected uses of each task after one that comes now [tasks]; None evicts what was used least recently."""


@dataclass(frozen=True)
class Device:
    """What a bundle runs on.

    Attributes:
        slots: pages that the arena has room for.
        storage: what reads cost.
    """

    slots: int
    storage: StorageModel


@dataclass(frozen=True)
class Simulation:
    """What came out.

    Attributes:
        waits: of each visit, in the order of the trace. The first fills an empty arena.
        prefetched: what loading ahead has brought.
        page_bytes: bytes of a page.
    """

    waits: Sequence[Wait]
    prefetched: PrefetchCounts
    page_bytes: int

    @property
    def switches(self) -> Floats:
        """Seconds of every wait but the first [switches]."""
        return np.array([wait.seconds for wait in self.waits[1:]])


class Simulator:
    """Replays traces of a bundle's tasks.

    Args:
        bundle: which pages its tasks need is all that is read of it.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._page_bytes = bundle.page_bytes
        self._needs: list[Pages] = [bundle.pages_of(task) for task in bundle.tasks]
        self._numbers = bundle.task_numbers
        self._pages = len(bundle.pages)
        self._span = span_of(bundle)

    def run(
        self,
        visits: Sequence[Visit],
        device: Device,
        foreteller: Foreteller,
        *,
        ahead: bool = True,
    ) -> Simulation:
        """Replay a trace.

        A task runs from when all its pages are there for as long as lies between its visit's start and the next one's.

        Args:
            visits: oldest first; each task fits.
            device: what they run on.
            foreteller: has observed nothing, or what came before.
            ahead: whether to load ahead, while it pays.
        """
        arena = self._arena(device)
        waits: list[Wait] = []
        history = _History(foreteller, PrefetchTrial(lambda: self._arena(device)))
        for visit, following in zip(visits, [*visits[1:], visits[-1]], strict=True):
            task, dwell = self._numbers[visit.task], max(0.0, following.start - visit.start)
            waits.append(arena.switch(task, foreteller.uses_after(task)))
            history.switched(task, waits[-1].seconds, device.storage)
            if ahead and history.trial.pays:
                arena.dwell(dwell, history.uses_at)
            history.passed(dwell)
        return Simulation(waits, arena.counts, self._page_bytes)

    def _arena(self, device: Device) -> Rehearsal:
        return Rehearsal(self._needs, self._pages, device.slots, self._page_bytes, device.storage, self._span)


class _History:
    """What an engine's prefetcher knows, in virtual time."""

    def __init__(self, foreteller: Foreteller, trial: PrefetchTrial) -> None:
        self.trial = trial
        self._foreteller = foreteller
        self._now = self._since = 0.0

    def switched(self, task: int, waited: float, storage: StorageModel) -> None:
        """A task was asked for, and was there after so long."""
        reuse = self._foreteller.uses_after(task)
        self.trial.switched(task, self._now - self._since, self.uses_at, reuse, storage)
        self._now += waited
        self._since = self._now
        self._foreteller.observe(task, self._now)

    def passed(self, seconds: float) -> None:
        """The task has run for so long."""
        self._now += seconds

    def uses_at(self, elapsed: float) -> Floats | None:
        """Expected uses of each task, so long after the last switch."""
        return self._foreteller.uses(self._since + elapsed)
