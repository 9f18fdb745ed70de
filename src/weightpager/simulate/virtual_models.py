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
from weightpager.runtime.prediction.markov import new_predictor
from weightpager.runtime.prefetch.expected_uses import ExpectedUses
from weightpager.runtime.prefetch.prefetch_trial import PrefetchTrial, Savings
from weightpager.runtime.prefetch.virtual_arena import UsesAt, VirtualArena, look_again
from weightpager.runtime.shared_budget import PATIENCE, SharedBudget, by_bundle
from weightpager.runtime.sharing import Bounds
from weightpager.simulate.simulator import CountedReuse, Device, Floats, Simulator
from weightpager.store import StorageModel


class VirtualBundle:
    """One of the bundles. Implements `Sharer`.

    Attributes:
        share: bytes of the budget that it has; 0 while it sleeps.
        page_bytes_read: bytes of pages that were read so far, waited for or not.
        wakings: how often it woke.
        waking: bytes that are read each time it wakes.
        stays: whether it may not go to sleep.
        arena: its pages; None while it sleeps.
        trial: whether prefetching into it pays; None before it first woke, or without prefetching.
    """

    def __init__(
        self, name: str, bundle: Bundle, storage: StorageModel, *, first: int = 0, savings: Savings | None = None
    ) -> None:
        """It sleeps. Its tasks are those from ``first`` on among all that may be asked for.

        ``savings`` are those of prefetching into all bundles; None for none.
        """
        self.name = name
        self.bounds = Bounds.of(bundle, needs := needs_of(bundle))
        self.share = self.wakings = 0
        self.waking = needs.waking
        self.stays = False
        self.arena: VirtualArena | None = None
        self.trial: PrefetchTrial | None = None
        self._needs, self._numbers, self._storage = needs, bundle.task_numbers, storage
        self._simulator = Simulator(bundle)
        self._all = slice(first, first + len(self._numbers))
        self._savings = savings
        self._capacity = page_capacity(bundle)
        self._waited_pages = self._before = 0
        self._uses = CountedReuse(len(self._numbers))

    @property
    def differential_bytes(self) -> float:
        """Bytes to load for an average switch."""
        return self._simulator.differential_bytes

    @property
    def page_bytes_read(self) -> int:
        return self._simulator.page_bytes * (self._waited_pages + self._before + self._prefetched)

    @property
    def _prefetched(self) -> int:
        return 0 if self.arena is None else self.arena.counts.loaded + self.arena.counts.late

    def own(self, uses: Floats) -> Floats:
        """The uses of its own tasks, of those of all tasks."""
        return uses[self._all]

    def wish(self, task: str) -> Wish:
        if self.arena is None:
            return self.bounds.wish(task)
        return sharing.wish(self._needs, self.arena.blocks, self._numbers[task])

    def holding(self, uses: Mapping[str, float]) -> Holding:
        if self.arena is None:
            return NOTHING
        held = sharing.holding(self._needs, self.arena.blocks, self.share, self._expected(uses))
        return replace(held, uses=None if self.stays else sum(uses.values()))

    def wanted(self, uses: Mapping[str, float]) -> Floats:
        return np.zeros(0) if self.arena is None else sharing.wanted(self.arena.blocks, self._expected(uses))

    def _expected(self, uses: Mapping[str, float]) -> Floats:
        return np.array([uses.get(task, 0.0) for task in self._numbers])

    def resize(self, share: int, uses: Mapping[str, float] | None = None) -> None:
        device = Device(self._needs.split(share).slots, self._storage)
        if self.arena is None:
            self.arena = self._simulator.arena(device, self._capacity)
            self.wakings += 1
            self._uses = CountedReuse(len(self._numbers))  # as an engine that was just opened
        else:
            self.arena.resize(device.slots, None if uses is None else self._expected(uses))
        self.share = share
        if self.trial is not None:
            self.trial.move(lambda: self._simulator.arena(device))
        elif self._savings is not None:
            self.trial = PrefetchTrial(lambda: self._simulator.arena(device), self._savings)

    def rest(self) -> None:
        self._before += self._prefetched
        self.arena, self.share = None, 0

    def leave(self) -> float:
        """No task of it is in use any more. Returns how many seconds the reads last that have begun."""
        if self.arena is None:
            return 0.0
        self.arena.leave()
        return self.arena.settle()

    def enter(self, task: str, now: float) -> float:
        """Bring a task in that has room, at this time. Returns the seconds until it is there."""
        assert self.arena is not None, "a task is entered once its bundle is awake"
        number = self._numbers[task]
        wait = self.arena.switch(number, self._uses.uses_after(number))
        self._waited_pages += wait.pages
        self._uses.observe(number, now + wait.seconds)
        return wait.seconds

    def learn(self, task: str | None, dwell: float, uses_at: UsesAt, uses_after: Floats) -> None:
        """A task was asked for, None of another bundle, so many seconds after the one before."""
        if self.trial is not None and self.arena is not None:
            number = None if task is None else self._numbers[task]
            self.trial.learn(number, dwell, uses_at, self.own, uses_after, self._storage)


@dataclass(frozen=True)
class Entered:
    """What it took to enter a task: seconds, bytes read since the one before, and bundles that woke."""

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
        self.bundles: dict[str, VirtualBundle] = {}
        self._names: list[str] = []
        savings = Savings() if prefetch else None
        for name, each in bundles.items():
            self.bundles[name] = VirtualBundle(name, each, storage, first=len(self._names), savings=savings)
            self._names += [f"{name}/{task}" for task in each.tasks]
        self._storage, self._prefetch = storage, prefetch
        self._shared = SharedBudget(self.bundles, budget)
        for bundle in self.bundles.values():
            self._shared.make_room(bundle, bundle.bounds.smallest, dict)
        tasks, switch = len(self._names), np.mean([each.differential_bytes for each in self.bundles.values()])
        predictor = new_predictor(tasks)
        self._uses = ExpectedUses.blank(predictor, tasks, storage.seconds(0, round(float(switch))))
        self._since, self._ran, self._late = 0.0, 0.0, 0.0
        self._seen = self._read, self._wakings

    @property
    def budget(self) -> int:
        """Bytes for the weights of all."""
        return self._shared.budget

    @property
    def shares(self) -> dict[str, int]:
        return self._shared.shares

    def enter(self, name: str, task: str, now: float) -> Entered:
        """Enter a task of a bundle, at this time, and leave the one before."""
        bundle, number = self.bundles[name], self._names.index(f"{name}/{task}")
        after = self._uses.uses_after(number)
        seconds, self._late = self._late + sum(each.leave() for each in self.bundles.values()), 0.0
        wakings = bundle.wakings
        self._shared.make_room(bundle, task, lambda: by_bundle(self._names, after))
        if bundle.wakings > wakings:
            seconds += self._waking_seconds(bundle)
        seconds += bundle.enter(task, now + seconds)
        if self._prefetch and self._uses.current is not None:
            for each in self.bundles.values():
                each.learn(task if each is bundle else None, self._ran, self._uses_at, after)
        self._since, self._ran = now + seconds, 0.0
        self._uses.observe(number, self._since)
        (read, woke), self._seen = self._seen, (self._read, self._wakings)
        return Entered(seconds, self._seen[0] - read, self._seen[1] - woke)

    def dwell(self, name: str, seconds: float) -> None:
        """A bundle's task, the one that was entered last, runs for so long. Meanwhile others' pages are prefetched."""
        self._ran, now = seconds, PATIENCE
        self.bundles[name].stays = True
        while self._prefetch and now < seconds and not any(arena.is_reading for arena in self._arenas.values()):
            uses = self._uses_at(now)
            taken = None if uses is None else self._ahead(uses, seconds - now)
            now = look_again(now) if taken is None else now + taken
        self.bundles[name].stays = False
        self._late = max(0.0, now - seconds) if self._wakings > self._seen[1] else 0.0

    @property
    def _arenas(self) -> dict[str, VirtualArena]:
        return {name: each.arena for name, each in self.bundles.items() if each.arena is not None}

    def _ahead(self, uses: Floats, seconds: float) -> float | None:
        """Prefetch a batch, or make room for one. Returns how long that takes; None where nothing pays."""
        plans = [
            (*arena.plan(self.bundles[name].own(uses)), arena)
            for name, arena in self._arenas.items()
            if (trial := self.bundles[name].trial) is not None and trial.pays
        ]
        if not plans:
            return None
        plan, worth, arena = max(plans, key=lambda each: each[1])
        if worth:
            return arena.prefetch(plan, seconds)
        asleep = [each for each in self.bundles.values() if not each.share]
        if not self._shared.make_room_ahead(by_bundle(self._names, uses), list(self.bundles)):
            return None
        return sum(self._waking_seconds(each) for each in asleep if each.share)

    def _waking_seconds(self, bundle: VirtualBundle) -> float:
        return OPENING + self._storage.seconds(1, bundle.waking)

    def _uses_at(self, elapsed: float) -> Floats | None:
        return self._uses.uses(self._since + elapsed)

    @property
    def _read(self) -> int:
        return sum(each.page_bytes_read + each.wakings * each.waking for each in self.bundles.values())

    @property
    def _wakings(self) -> int:
        return sum(each.wakings for each in self.bundles.values())
