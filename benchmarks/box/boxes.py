"""The ways to run several bundles in one memory budget."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.box.processes import ModelProcess, Start, proportional, storage, wait_for
from benchmarks.box.requests import Request, answer, opening_bytes
from weightpager.bundle import Bundle
from weightpager.config import EngineConfig
from weightpager.engine import Engine, Models
from weightpager.engine.shared_bundle import SharedBundle
from weightpager.errors import BudgetError
from weightpager.runtime.budget import largest_budget, smallest_budget

Bundles = Mapping[str, Bundle]


class Box(ABC):
    """Several bundles in one budget.

    Attributes:
        opened: how often a bundle was opened, or its process started.
    """

    opened = 0

    @abstractmethod
    def enter(self, request: Request) -> None:
        """Have a request's task ready to run."""

    @abstractmethod
    def answer(self, request: Request) -> None:
        """Answer it, after `enter`."""

    @abstractmethod
    def held(self) -> int:
        """Bytes of weights, caches and features in memory now."""

    @abstractmethod
    def read(self) -> int:
        """Bytes that were read from storage so far."""

    def memory(self) -> int:
        """Resident bytes of all processes now."""
        return proportional()

    @abstractmethod
    def close(self) -> None:
        """End all."""


class Ours(Box):
    """`Models`: one budget, whose parts go where they are wanted."""

    def __init__(self, bundles: Bundles, budget: int, rate: float, *, prefetch: bool = False) -> None:
        self._rate, self._budget = rate, budget
        self._opening = {name: opening_bytes(bundle.path) for name, bundle in bundles.items()}
        self._opened_bytes = sum(self._opening.values())
        with ExitStack() as opening:
            opening.enter_context(storage(rate))
            paths = [bundle.path for bundle in bundles.values()]
            self.models = opening.enter_context(Models.from_pretrained(paths, budget=budget, prefetch=prefetch))
            for bundle in self.models.bundles.values():
                setattr(bundle, "resize", partial(self._resize, bundle, bundle.resize))  # noqa: B010 - a method
            self._stack = opening.pop_all()

    def enter(self, request: Request) -> None:
        self.models.activate(request.whole_name)

    def _resize(self, bundle: SharedBundle, resize: Callable[..., None], share: int, *uses: Any) -> None:
        """Resize a bundle. Where it wakes, in whichever thread, its files beside pages come from the storage, too."""
        slept = bundle.engine is None
        resize(share, *uses)
        if slept:
            wait_for(self._opening[bundle.name], self._rate)
            self._opened_bytes += self._opening[bundle.name]
            self.opened += 1

    def answer(self, request: Request) -> None:
        answer(self.models, request.whole_name, request)

    def held(self) -> int:
        return sum(engine.report().memory.total for engine in self.models.engines.values())

    def read(self) -> int:
        return self._opened_bytes + sum(bundle.bytes_read for bundle in self.models.bundles.values())

    def close(self) -> None:
        self._stack.close()


class SplitByHand(Box):
    """An engine for each bundle, with a fixed part of the budget."""

    def __init__(self, bundles: Bundles, budget: int, rate: float) -> None:
        self._opening = sum(opening_bytes(bundle.path) for bundle in bundles.values())
        with ExitStack() as opening:
            opening.enter_context(storage(rate))
            self.engines = {
                name: opening.enter_context(Engine(bundles[name], EngineConfig(part)))
                for name, part in parts(bundles, budget).items()
            }
            self._stack = opening.pop_all()

    def enter(self, request: Request) -> None:
        self.engines[request.bundle].activate(request.task)

    def answer(self, request: Request) -> None:
        answer(self.engines[request.bundle], request.task, request)

    def held(self) -> int:
        return sum(engine.report().memory.total for engine in self.engines.values())

    def read(self) -> int:
        return self._opening + sum(engine.report().bytes_read for engine in self.engines.values())

    def close(self) -> None:
        self._stack.close()


def parts(bundles: Bundles, budget: int) -> dict[str, int]:
    """The budget in proportion to what bundles can use, where each gets at least what its largest task needs.

    Raises:
        BudgetError: it doesn't hold the largest tasks of all at once.
    """
    least = {name: smallest_budget(bundle) for name, bundle in bundles.items()}
    most = {name: largest_budget(bundle) for name, bundle in bundles.items()}
    if sum(least.values()) > budget:
        raise BudgetError(f"expected {sum(least.values())} bytes to split, got {budget}", sum(least.values()))
    fixed: dict[str, int] = {}
    while True:
        rest = {name: most[name] for name in bundles if name not in fixed}
        left = budget - sum(fixed.values())
        found = {name: left * most[name] // sum(rest.values()) for name in rest}
        short = {name: least[name] for name in rest if found[name] < least[name]}
        if not short:
            return {**fixed, **found}
        fixed |= short


class Processes(Box):
    """A process for each bundle; the least recently used are killed where another wants to start.

    Args:
        bundles: by name.
        budget: of the weights of all processes; one that needs more alone gets all of it.
        rate: of the storage.
        start: of each.
        whole: whether it loads all tasks before it is ready.
    """

    def __init__(self, bundles: Bundles, budget: int, rate: float, *, start: Start, whole: bool) -> None:
        self._bundles, self._budget, self._rate, self._start, self._whole = bundles, budget, rate, start, whole
        self._needs = {name: min(budget, largest_budget(bundle)) for name, bundle in bundles.items()}
        self._alive: dict[str, ModelProcess] = {}  # the least recently used first
        self._read_before = 0

    def enter(self, request: Request) -> None:
        name = request.bundle
        process = self._alive.pop(name, None)
        if process is None:
            process = self._started(name)
        self._alive[name] = process
        process.enter(request)

    def answer(self, request: Request) -> None:
        self._alive[request.bundle].answer(request)

    def held(self) -> int:
        return sum(process.told.held for process in self._alive.values())

    def read(self) -> int:
        return self._read_before + sum(process.told.read for process in self._alive.values())

    def memory(self) -> int:
        """With this one where it is what others are copied from."""
        own = proportional(os.getpid()) if self._start == "fork" else 0
        return own + sum(process.memory for process in self._alive.values())

    def close(self) -> None:
        for name in list(self._alive):
            self._end(name)

    def _started(self, name: str) -> ModelProcess:
        while self._alive and sum(self._needs[other] for other in self._alive) + self._needs[name] > self._budget:
            self._end(next(iter(self._alive)))
        need = self._needs[name]
        whole = self._whole and need >= largest_budget(self._bundles[name])
        self.opened += 1
        return ModelProcess(self._bundles[name], need, self._rate, self._start, whole=whole)

    def _end(self, name: str) -> None:
        process = self._alive.pop(name)
        self._read_before += process.told.read
        process.close()


METHODS: Mapping[str, Callable[[Bundles, int, float], Box]] = {
    "ours": Ours,
    "split by hand": SplitByHand,
    "processes, started anew": partial(Processes, start="spawn", whole=True),
    "processes, forked": partial(Processes, start="fork", whole=True),
    "processes, forked, a task at a time": partial(Processes, start="fork", whole=False),
}
"""By name, from bundles, budget and rate."""

AHEAD = "ours, ahead"
OF_A_ROUND: Mapping[str, Callable[[Bundles, int, float], Box]] = {"ours": Ours, AHEAD: partial(Ours, prefetch=True)}
"""Those that are compared where requests come in rounds, likewise."""
