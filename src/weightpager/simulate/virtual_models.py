"""Several bundles under one budget in virtual time, as `Models` runs them: what each switch reads and waits for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from weightpager.bundle import Bundle
from weightpager.bundle.footprint import page_capacity
from weightpager.runtime import sharing
from weightpager.runtime.budget import needs_of
from weightpager.runtime.planning.shares import NOTHING, OPENING, Holding, Wish
from weightpager.runtime.prefetch.virtual_arena import PrefetchTrial, VirtualArena
from weightpager.runtime.shared_budget import SharedBudget
from weightpager.runtime.sharing import Bounds
from weightpager.simulate.simulator import CountedReuse, Device, Floats, Simulator, UsePredictor
from weightpager.store import StorageModel


class VirtualBundle:
    """One of the bundles. Implements `Sharer`.

    Attributes:
        share: bytes of the budget that it has; 0 while it sleeps.
        page_bytes_read: bytes of pages that were read so far, waited for or not.
        wakings: how often it woke.
        waking: bytes that are read each time it wakes.
    """

    def __init__(self, name: str, bundle: Bundle, storage: StorageModel, *, prefetch: bool = False) -> None:
        """It sleeps. With ``prefetch`` it loads ahead, while a task of it runs, what its own next one needs."""
        self.name = name
        self.bounds = Bounds.of(bundle, needs := needs_of(bundle))
        self.share = self.wakings = 0
        self.waking = needs.waking
        self._needs, self._numbers, self._storage = needs, bundle.task_numbers, storage
        self._simulator = Simulator(bundle)
        self._prior = bundle.manifest.transitions if prefetch else None
        self._prefetch = prefetch
        self._capacity = page_capacity(bundle)
        self._waited_pages = self._before = 0
        self._arena: VirtualArena | None = None
        self._begin()

    def _begin(self) -> None:
        """Know nothing of what was used, as an engine that was just opened."""
        tasks = len(self._numbers)
        learner = self._simulator.learner
        self._uses: UsePredictor = learner(self._storage, self._prior) if self._prefetch else CountedReuse(tasks)
        self._since: float | None = None  # it was switched

    @property
    def page_bytes_read(self) -> int:
        return self._simulator.page_bytes * (self._waited_pages + self._before + self._prefetched)

    @property
    def _prefetched(self) -> int:
        return 0 if self._arena is None else self._arena.counts.loaded + self._arena.counts.late

    def wish(self, task: str) -> Wish:
        if self._arena is None:
            return self.bounds.wish(task)
        return sharing.wish(self._needs, self._arena.blocks, self._numbers[task])

    def holding(self, uses: Mapping[str, float]) -> Holding:
        if self._arena is None:
            return NOTHING
        held = sharing.holding(self._needs, self._arena.blocks, self.share, self._expected(uses))
        return replace(held, uses=sum(uses.values()))

    def _expected(self, uses: Mapping[str, float]) -> Floats:
        return np.array([uses.get(task, 0.0) for task in self._numbers])

    def resize(self, share: int, uses: Mapping[str, float] | None = None) -> None:
        device = Device(self._needs.split(share).slots, self._storage)
        if self._arena is None:
            self._arena = self._simulator.arena(device, self._capacity)
            self.wakings += 1
            self._begin()
        else:
            self._arena.resize(device.slots, None if uses is None else self._expected(uses))
        self.share = share
        self._trial = PrefetchTrial(lambda: self._simulator.arena(device)) if self._prefetch else None

    def rest(self) -> None:
        self._before += self._prefetched
        self._arena, self.share = None, 0

    def leave(self) -> float:
        """No task of it is in use any more. Returns how many seconds the reads last that have begun."""
        if self._arena is None:
            return 0.0
        self._arena.leave()
        return self._arena.settle()

    def enter(self, task: str, now: float) -> float:
        """Bring a task in that has room, at this time. Returns the seconds until it is there."""
        assert self._arena is not None, "a task is entered once its bundle is awake"
        number = self._numbers[task]
        expected = self._uses.uses_after(number)
        if self._trial is not None and self._since is not None:
            self._trial.switched(number, now - self._since, self._uses_at, expected, self._storage)
        wait = self._arena.switch(number, expected)
        self._waited_pages += wait.pages
        self._since = now + wait.seconds
        self._uses.observe(number, self._since)
        return wait.seconds

    def dwell(self, seconds: float) -> None:
        """Its task runs for so long."""
        if self._arena is not None and self._trial is not None and self._trial.pays:
            self._arena.dwell(seconds, self._uses_at)

    def _uses_at(self, elapsed: float) -> Floats | None:
        return self._uses.uses((self._since or 0.0) + elapsed)


@dataclass(frozen=True)
class Entered:
    """What it took to enter a task: seconds, bytes read for it, and bundles that woke."""

    seconds: float
    bytes: int
    woke: int = 0


class VirtualModels:
    """The bundles and their budget, at a time that only goes on when it is told to."""

    def __init__(
        self, bundles: Mapping[str, Bundle], budget: int | None, storage: StorageModel, *, prefetch: bool = False
    ) -> None:
        """Each has been woken once, as `Models` does to see that they run.

        Raises:
            BudgetError: the budget doesn't hold the largest task of each.
        """
        self.bundles = {name: VirtualBundle(name, each, storage, prefetch=prefetch) for name, each in bundles.items()}
        self._tasks = [(name, task) for name, bundle in bundles.items() for task in bundle.tasks]
        self._uses = CountedReuse(len(self._tasks))
        self._storage = storage
        self._shared = SharedBudget(self.bundles, budget)
        for bundle in self.bundles.values():
            self._shared.make_room(bundle, bundle.bounds.smallest, dict)

    @property
    def budget(self) -> int:
        """Bytes for the weights of all."""
        return self._shared.budget

    @property
    def shares(self) -> dict[str, int]:
        return self._shared.shares

    def enter(self, name: str, task: str, now: float) -> Entered:
        """Enter a task of a bundle, at this time, and leave the one before."""
        before = self._read
        bundle, wakings = self.bundles[name], self.bundles[name].wakings
        seconds = sum(each.leave() for each in self.bundles.values())
        number = self._tasks.index((name, task))
        self._shared.make_room(bundle, task, lambda: self._uses_after(number))
        woke = bundle.wakings - wakings
        if woke:
            seconds += OPENING + self._storage.seconds(1, bundle.waking)
        seconds += bundle.enter(task, now + seconds)
        self._uses.observe(number, now)
        return Entered(seconds, self._read - before, woke)

    def dwell(self, name: str, seconds: float) -> None:
        """A bundle's task, the one that was entered last, runs for so long."""
        self.bundles[name].dwell(seconds)

    @property
    def _read(self) -> int:
        return sum(each.page_bytes_read + each.wakings * each.waking for each in self.bundles.values())

    def _uses_after(self, number: int) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in self.bundles}
        for (name, task), uses in zip(self._tasks, self._uses.uses_after(number).tolist(), strict=True):
            found[name][task] = uses
        return found
