"""Ways to run several bundles in one budget, compared in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Protocol

import numpy as np

from weightpager.bundle import Bundle
from weightpager.errors import BudgetError
from weightpager.progress import StepProgress, silent
from weightpager.runtime.budget import needs_of
from weightpager.runtime.planning.shares import OPENING, spread
from weightpager.simulate.virtual_models import Entered, VirtualBundle, VirtualModels
from weightpager.simulate.waits import Waits
from weightpager.store import StorageModel
from weightpager.trace_file import Visit

SHARED, PREFETCH, SPLIT, WHOLE = "shared", "shared, prefetch", "split", "whole models"


class Serving(Protocol):
    """Bundles that run tasks in a budget."""

    def enter(self, name: str, task: str, now: float) -> Entered:
        """Enter a task of a bundle, at this time, and leave the one before."""

    def dwell(self, name: str, seconds: float) -> None:
        """The task, which is of this bundle, runs for so long."""


class SplitBudget:
    """Each bundle has a budget of its own. Implements `Serving`.

    It is what the bundle's largest task takes, and of the rest a part as large as what the bundle could use of it.
    """

    def __init__(self, bundles: Mapping[str, Bundle], budget: int, storage: StorageModel) -> None:
        """All are awake.

        Raises:
            BudgetError: the budget doesn't hold the largest tasks of all together.
        """
        self._bundles = {name: VirtualBundle(name, each, storage) for name, each in bundles.items()}
        bounds = {name: bundle.bounds for name, bundle in self._bundles.items()}
        least = {name: each.least for name, each in bounds.items()}
        _check(budget, sum(least.values()))
        for name, share in spread(least, {name: each.most for name, each in bounds.items()}, budget).items():
            self._bundles[name].resize(share)

    def enter(self, name: str, task: str, now: float) -> Entered:
        bundle = self._bundles[name]
        before = bundle.page_bytes_read
        seconds = bundle.enter(task, now)
        return Entered(seconds, bundle.page_bytes_read - before)

    def dwell(self, name: str, seconds: float) -> None:
        """Nothing is prefetched."""


class WholeModels:
    """A bundle is in memory with all its pages, or not at all; what was used least recently goes. Is a `Serving`."""

    def __init__(self, bundles: Mapping[str, Bundle], budget: int, storage: StorageModel) -> None:
        """Nothing is in memory.

        Raises:
            BudgetError: the budget doesn't hold the largest.
        """
        needs = {name: needs_of(bundle) for name, bundle in bundles.items()}
        self._sizes = {name: each.holding(each.pages).total for name, each in needs.items()}
        self._loads = {name: each.waking + each.pages * each.page_bytes for name, each in needs.items()}
        self._budget, self._storage = budget, storage
        self._here: list[str] = []  # what was used last comes last
        _check(budget, max(self._sizes.values()))

    def enter(self, name: str, task: str, now: float) -> Entered:  # noqa: ARG002 - the protocol's
        if name in self._here:
            self._here.remove(name)
            self._here.append(name)
            return Entered(0.0, 0)
        while sum(self._sizes[each] for each in [*self._here, name]) > self._budget:
            self._here.pop(0)
        self._here.append(name)
        return Entered(OPENING + self._storage.seconds(1, self._loads[name]), self._loads[name], 1)

    def dwell(self, name: str, seconds: float) -> None:
        """Nothing is prefetched."""


def _check(budget: int, least: int) -> None:
    if budget < least:
        raise BudgetError(f"expected a budget of {least} bytes at least, found {budget}", least)


@dataclass(frozen=True)
class SharedWaits(Waits):
    """`Waits` of switches between several bundles' tasks.

    Attributes:
        bytes_read: bytes of all switches, waited for or not.
        wakings: switches that opened a bundle.
    """

    bytes_read: int
    wakings: int

    @classmethod
    def of_entered(cls, policy: str, entered: Sequence[Entered]) -> SharedWaits:
        """The figures of all switches; the first task was none."""
        switches = entered[1:]
        read = sum(each.bytes for each in switches)
        waits = Waits.of(policy, np.array([each.seconds for each in switches]), read)
        return cls(**vars(waits), bytes_read=read, wakings=sum(each.woke for each in switches))


@dataclass(frozen=True)
class Compared:
    """What each policy costs that runs in the budget, and the smallest budget in which each other one would."""

    waits: Sequence[SharedWaits]
    too_small: Mapping[str, int]


def compare(
    bundles: Mapping[str, Bundle],
    visits: Sequence[Visit],
    budget: int | None,
    storage: StorageModel,
    progress: StepProgress = silent,
) -> Compared:
    """Replay a trace under each policy.

    Args:
        bundles: by name.
        visits: to tasks by their whole names, oldest first, two at least.
        budget: bytes; None for all that the bundles can use.
        storage: what reads cost.
        progress: is told (policies tried, policies in all).

    Raises:
        BudgetError: it doesn't hold the largest task of each bundle.
    """
    shared = VirtualModels(bundles, budget, storage)
    servings: dict[str, Callable[[], Serving]] = {
        SHARED: lambda: shared,
        PREFETCH: partial(VirtualModels, bundles, budget, storage, prefetch=True),
        SPLIT: partial(SplitBudget, bundles, shared.budget, storage),
        WHOLE: partial(WholeModels, bundles, shared.budget, storage),
    }
    waits: list[SharedWaits] = []
    too_small: dict[str, int] = {}
    for done, (policy, serving) in enumerate(servings.items(), 1):
        try:
            waits.append(SharedWaits.of_entered(policy, replay(visits, serving())))
        except BudgetError as error:
            too_small[policy] = error.smallest
        progress(done, len(servings))
    return Compared(waits, too_small)


def replay(visits: Sequence[Visit], serving: Serving) -> list[Entered]:
    """What it takes to enter each task of a trace, which then runs until the next one is asked for."""
    entered: list[Entered] = []
    now = 0.0
    for visit, following in pairwise([*visits, visits[-1]]):
        name, _, task = visit.task.partition("/")
        dwell = max(0.0, following.start - visit.start)
        entered.append(serving.enter(name, task, now))
        serving.dwell(name, dwell)
        now += entered[-1].seconds + dwell
    return entered
