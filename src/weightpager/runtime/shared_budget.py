"""One memory budget of several bundles: who has how much of it, and who gives when another wants more."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.config import format_enough, format_room
from weightpager.errors import (
    BudgetError,
    ConfigError,
    TaskTooLargeError,
    UnknownTaskError,
    WeightpagerError,
    first_line,
    shown,
)
from weightpager.runtime.planning.prefetch_planner import BATCH_BYTES, MARGIN
from weightpager.runtime.planning.shares import NOTHING, WAKING, Holding, Wish, plan_ahead, plan_shares, spread
from weightpager.runtime.sharing import Bounds

_Uses = Mapping[str, Mapping[str, float]]

AskUses = Callable[[], _Uses]
"""Finds out the expected uses of each task, by bundle and task, which takes a moment."""

_NOBODY = ""
"""Who wants the memory that leaves a budget; no bundle is named so."""

_log = logging.getLogger(__name__)

MOST = 32
"""Bundles that may share a budget."""

PATIENCE = 0.05
"""Seconds after a switch before anything is prefetched: the answer begins then."""

_LOOK_AHEAD = 3
"""Tasks that are weighed when room is made ahead: what is expected less seldom pays."""


def named(bundles: Sequence[str | Path]) -> dict[str, Path]:
    """Directories of bundles, by the names of these.

    Raises:
        ConfigError: there is none, there are too many, or two have one name.
    """
    if isinstance(bundles, (str, Path)) or not 1 <= len(bundles) <= MOST:
        raise ConfigError(f"bundles: expected a list of 1 to {MOST} directories, got {shown(bundles)}")
    paths: dict[str, Path] = {}
    for path in map(Path, bundles):
        name = name_of(path)
        if name in paths:
            raise ConfigError(f"bundles: expected different names, found two of {shown(name)}; rename a directory")
        paths[name] = path.absolute()
    return paths


def name_of(path: Path) -> str:
    """By which a bundle's tasks are named among those of others."""
    return path.absolute().name.removesuffix(".bundle")


def find_task(name: str, tasks: Mapping[str, Collection[str]]) -> tuple[str, str]:
    """The bundle and the task that a name means: ``"bundle/task"``, or ``"task"`` where one bundle alone has it.

    Args:
        name: of the task.
        tasks: of each bundle, by its name.

    Raises:
        UnknownTaskError: no bundle has such a task, or several have.
    """
    owner, _, task = name.partition("/")
    if task in tasks.get(owner, ()):
        return owner, task
    having = [owner for owner, own in tasks.items() if name in own]
    if len(having) == 1:
        return having[0], name
    if having:
        raise UnknownTaskError(name, [f"{owner}/{name}" for owner in having], "several bundles have it")
    raise UnknownTaskError(name, [f"{owner}/{task}" for owner in tasks for task in tasks[owner]], "the bundles have")


def by_bundle(names: Sequence[str], uses: npt.NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Expected uses of tasks by bundle and task, of those of all tasks by their whole names [tasks]."""
    found: dict[str, dict[str, float]] = {}
    for whole, worth in zip(names, uses.tolist(), strict=True):
        owner, _, task = whole.partition("/")
        found.setdefault(owner, {})[task] = worth
    return found


class Sharer(Protocol):
    """A bundle that shares a budget: a real one, or one in virtual time."""

    @property
    def name(self) -> str: ...

    @property
    def bounds(self) -> Bounds: ...

    @property
    def share(self) -> int:
        """Bytes of the budget that it has; 0 while it sleeps."""

    def wish(self, task: str) -> Wish:
        """What it wants for a task."""

    def holding(self, uses: Mapping[str, float]) -> Holding:
        """What it has, by the expected uses of its tasks."""

    def wanted(self, uses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Expected uses of the pages that it lacks while it is awake, descending; those that have none are left out."""

    def resize(self, share: int, uses: Mapping[str, float] | None = None) -> None:
        """Have so many bytes from now on, for which it wakes. What goes is what tasks will use least, where known."""

    def rest(self) -> None:
        """Sleep."""


_Bundle = TypeVar("_Bundle", bound=Sharer)


class SharedBudget(Generic[_Bundle]):
    """The budget and its bundles. Shares are never more than the budget together. For one thread at a time.

    Attributes:
        bundles: by name; replaced as a whole, so that other threads may read it.
        budget: bytes.
        stated: whether somebody said how much it is; otherwise it is what the bundles can use.
    """

    def __init__(self, bundles: Mapping[str, _Bundle], stated: int | None) -> None:
        """All of the bundles sleep.

        Args:
            bundles: by name.
            stated: bytes; None for all that the bundles can use.

        Raises:
            BudgetError: it doesn't hold the largest task of each bundle, beside real-time tasks of others.
        """
        self.bundles = dict(bundles)
        self.stated = stated is not None
        self.budget = self._usable if stated is None else stated
        self.check(self.budget)

    @property
    def shares(self) -> dict[str, int]:
        return {name: bundle.share for name, bundle in self.bundles.items()}

    @property
    def _usable(self) -> int:
        return sum(bundle.bounds.most for bundle in self.bundles.values())

    def check(self, budget: int) -> None:
        """Check that a budget would do.

        Raises:
            BudgetError: it wouldn't; says the smallest that would.
        """
        leasts = {name: bundle.bounds.least + self._beside(bundle) for name, bundle in self.bundles.items()}
        name = max(leasts, key=leasts.__getitem__)
        beside = self._beside(self.bundles[name])
        if budget < leasts[name]:
            others = f" beside the {format_enough(beside)} of tasks of other bundles that stay" if beside else ""
            raise BudgetError(
                f"a budget of {format_room(budget)} is too small for the largest task of {name!r}{others}; the "
                f"smallest that would do is {leasts[name]} bytes ({format_enough(leasts[name])})",
                leasts[name],
            )

    def check_fits(self, bundle: _Bundle, task: str) -> None:
        """Check that the budget ever holds a task. Errors are those of `Engine.check_fits`."""
        least = bundle.bounds.alone[task] + self._beside(bundle)
        if least > self.budget:
            raise TaskTooLargeError(
                f"task {bundle.name}/{task} can't run in {format_room(self.budget)}; the smallest budget that would do "
                f"is {least} bytes ({format_enough(least)})",
                least,
            )

    def fit_together(self, tasks: Sequence[tuple[_Bundle, str]]) -> bool:
        """Whether each of these tasks has room beside what the bundles of all of them, and of those that stay, keep."""
        awake = {bundle.name for bundle, _ in tasks}
        bounds = {name: bundle.bounds for name, bundle in self.bundles.items()}
        kept = {name: each.kept for name, each in bounds.items() if name in awake or each.staying}
        together = sum(kept.values())
        return all(bundle.bounds.alone[task] + together - kept[bundle.name] <= self.budget for bundle, task in tasks)

    def make_room(self, bundle: _Bundle, task: str, ask_uses: AskUses) -> None:
        """Wake a bundle if it sleeps, and give it the room that a task wants.

        Raises:
            BudgetError: that can't be had beside the tasks in use.
            BundleError, StoreError: the bundle slept, and can't be used any more.
        """
        wish = bundle.wish(task)
        if not bundle.share or wish.most > bundle.share:
            uses = ask_uses()
            self._apply(self._plan(bundle.name, wish, uses, f"task {bundle.name}/{task}"), uses)

    def make_room_ahead(self, uses: _Uses, may_wake: Collection[str]) -> bool:
        """Have memory go where pages are worth more that aren't in it, by the expected uses of all tasks.

        Where no page is, a bundle may wake for a task that comes soon, if all of the task is worth what goes for it.

        Args:
            uses: expected of all tasks.
            may_wake: bundles that may be woken.

        Returns:
            Whether anything has changed.

        Raises:
            BundleError, StoreError: a bundle that slept can't be used any more.
        """
        holdings = self._holdings(uses)
        shares = self._room_for_pages(uses, holdings) or self._room_to_wake(uses, holdings, may_wake)
        if shares is None:
            return False
        self._apply(shares, uses)
        return True

    def _room_for_pages(self, uses: _Uses, holdings: Mapping[str, Holding]) -> dict[str, int] | None:
        wanted = {}
        for name, bundle in self.bundles.items():
            pages = min(BATCH_BYTES, bundle.bounds.most - bundle.share) // holdings[name].page_bytes
            if bundle.share and pages > 0:
                wanted[name] = bundle.wanted(uses.get(name, {}))[:pages]
        best = max(wanted, key=lambda name: wanted[name].max(initial=0.0), default=None)
        return None if best is None else plan_ahead(best, wanted[best], holdings, self.budget)

    def _room_to_wake(
        self, uses: _Uses, holdings: Mapping[str, Holding], may_wake: Collection[str]
    ) -> dict[str, int] | None:
        asleep = [name for name in may_wake if not self.bundles[name].share]
        soon = ((worth, name, task) for name in asleep for task, worth in uses.get(name, {}).items() if worth)
        for worth, name, task in sorted(soon, reverse=True)[:_LOOK_AHEAD]:
            wish = self.bundles[name].wish(task)
            shares = plan_shares(name, wish, holdings, self.budget)
            if shares is not None:
                lost = sum(holdings[other].lost(share) for other, share in shares.items() if other != name)
                if worth * (wish.most + WAKING) > (1 + MARGIN) * lost:
                    return shares
        return None

    def resize(self, budget: int, ask_uses: AskUses) -> None:
        """Have another budget.

        Raises:
            BudgetError: it doesn't hold the largest task of each bundle, or the tasks in use; nothing has changed.
        """
        self.check(budget)
        if budget < self.budget:
            less, uses = self.budget - budget, ask_uses()
            self._apply(self._plan(_NOBODY, Wish(less, less), uses, "what the budget loses"), uses, budget)
        self.budget, self.stated = budget, True
        self.spread()

    def replace(self, bundles: Mapping[str, _Bundle]) -> None:
        """Have other bundles. Those that are gone sleep.

        Raises:
            BudgetError: the budget was stated, and is too small for one that is new; nothing has changed.
        """
        before, self.bundles = self.bundles, dict(bundles)
        try:
            if self.stated:
                self.check(self.budget)
        except BudgetError:
            self.bundles = before
            raise
        self.spread()

    def put_to_sleep(self, bundle: _Bundle) -> None:
        """Have a bundle sleep that isn't in use."""
        self._rest(bundle)
        self.spread()

    def spread(self) -> None:
        """Give what nobody has to those who are awake and can use it."""
        if not self.stated:
            self.budget = max(self._usable, sum(self.shares.values()))
        self._resize(spread(self.shares, self._most, self.budget))

    @property
    def _most(self) -> dict[str, int]:
        return {name: bundle.bounds.most for name, bundle in self.bundles.items()}

    def _beside(self, bundle: _Bundle) -> int:
        """Bytes that tasks of other bundles that stay keep from one."""
        return sum(other.bounds.kept for other in self.bundles.values() if other.bounds.staying and other is not bundle)

    def _plan(self, wanting: str, wish: Wish, uses: _Uses, what: str) -> dict[str, int]:
        holdings = self._holdings(uses)
        holdings.setdefault(wanting, NOTHING)
        plan = plan_shares(wanting, wish, holdings, self.budget)
        if plan is not None:
            plan.pop(_NOBODY, None)
            return plan
        stay = (holding.least for name, holding in holdings.items() if holding.uses is None and name != wanting)
        least = wish.least + sum(stay)
        raise BudgetError(
            f"{what} does not fit into {format_room(self.budget)} beside the tasks in use and what their bundles keep; "
            f"end their 'with' blocks, or open the bundles with {format_enough(least)}",
            least,
        )

    def _holdings(self, uses: _Uses) -> dict[str, Holding]:
        return {name: bundle.holding(uses.get(name, {})) for name, bundle in self.bundles.items()}

    def _apply(self, shares: Mapping[str, int], uses: _Uses, budget: int | None = None) -> None:
        """Give bundles their shares. One with none sleeps; who sleeps or wakes leaves or takes what all may share."""
        before = self.shares
        for name, share in shares.items():
            if before[name] and not share:
                self._rest(self.bundles[name])
        if any(bool(share) != bool(before[name]) for name, share in shares.items()):
            shares = spread(shares, self._most, self.budget if budget is None else budget)
        self._resize(shares, uses)

    def _resize(self, shares: Mapping[str, int], uses: _Uses = MappingProxyType({})) -> None:
        before = self.shares
        for name in sorted(shares, key=lambda each: shares[each] - before[each]):  # what shrinks shrinks first
            if shares[name] != before[name]:
                self.bundles[name].resize(shares[name], uses.get(name))

    def _rest(self, bundle: _Bundle) -> None:
        """Have a bundle sleep. That its store can't be closed is nobody's failure but its own."""
        try:
            bundle.rest()
        except WeightpagerError as error:
            _log.warning("files of the bundle %r could not be closed: %s", bundle.name, first_line(error))
