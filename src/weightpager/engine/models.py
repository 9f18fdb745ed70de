"""`Models`: several bundles that share one memory budget."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightpager.answers.kinds import Prediction
from weightpager.answers.predict import Input
from weightpager.answers.token_reader import Conversation
from weightpager.bundle import Bundle, TaskEntry
from weightpager.config import EngineConfig, format_enough, format_room, format_size, parse_size
from weightpager.engine.engine import Engine
from weightpager.errors import BudgetError, BusyError, ConfigError, UnknownTaskError, shown
from weightpager.interrupts import acquired, uninterrupted
from weightpager.runtime.bracket import Closing, bracket
from weightpager.runtime.budget import largest_budget, needs_of, smallest_budget
from weightpager.runtime.paging.state import Deadline
from weightpager.runtime.planning.shares import plan_shares
from weightpager.runtime.prediction.task_monitor import TaskMonitor, expected_uses_after

MOST = 32
"""Bundles that may share a budget."""


class Models(Closing):
    """Runs the tasks of several bundles inside one memory budget.

    Each bundle has an engine with a share of the budget. Before a task is entered whose pages lack room, its bundle's
    share grows by what is worth least anywhere: memory that holds no page, then pages by the expected uses of their
    tasks, over all bundles. What is always in memory of a bundle (its resident and private parameters, and room for
    its smallest task) stays.

    A task is named ``"bundle/task"`` by the name of the bundle's directory without its ``.bundle``, or ``"task"``
    where one bundle alone has it. Predictions of several threads follow one another. Outputs are those of an engine.

    Attributes:
        engines: the engine of each bundle by name, for its report. Run tasks by this object: what an engine is asked
            directly has no more than its share.
        monitor: which task ran when, over all bundles.
    """

    @uninterrupted
    def __init__(self, bundles: Mapping[str, Bundle], config: EngineConfig) -> None:
        """Open bundles; `from_pretrained` is the usual way.

        Args:
            bundles: open bundles by name.
            config: budget of all, and how each engine runs.

        Raises:
            BudgetError: the budget doesn't hold the largest task of each beside what the others always keep.
            BundleError, StoreError: a bundle can't be used.
        """
        needed = {name: _Needed.of(bundle, config.dtype) for name, bundle in bundles.items()}
        self.budget = _budget(needed, config.budget)
        self.monitor = TaskMonitor()
        self.engines: dict[str, Engine] = {}
        self._tasks = {f"{name}/{task}": (name, task) for name, bundle in bundles.items() for task in bundle.tasks}
        self._sharing = threading.RLock()  # held by whoever enters a task or predicts, before any engine's locks
        with ExitStack() as undone:
            undone.callback(self.close)
            for name, share in _first_shares(needed, self.budget).items():
                with uninterrupted.lifted():
                    self.engines[name] = Engine(bundles[name], replace(config, budget=share))
            undone.pop_all()

    @classmethod
    def from_pretrained(
        cls,
        bundles: Sequence[str | Path],
        *,
        budget: str | int | None = None,
        dtype: str = "auto",
        io_threads: int = 8,
        read_timeout: float = 30.0,
        backend: str = "auto",
    ) -> Models:
        """Open bundle directories under one budget. No page is loaded.

        Args:
            bundles: directories with different names.
            budget: memory for the weights of all, such as ``"64MiB"``, or bytes; None for all that they hold.
            dtype: what tasks compute in, as of `Engine.from_pretrained`, likewise all that follow.
            io_threads: reads in flight of each bundle.
            read_timeout: seconds without any page after which a load fails.
            backend: what runs tasks.

        Raises:
            ConfigError: an argument is wrong, or two bundles have one name.
            BudgetError: it is too small; says the smallest that would do.
            BundleError, StoreError: a bundle can't be used.
        """
        if isinstance(bundles, (str, Path)) or not 1 <= len(bundles) <= MOST:
            raise ConfigError(f"bundles: expected a list of 1 to {MOST} directories, got {shown(bundles)}")
        stated = None if budget is None else parse_size(budget, "budget")
        config = EngineConfig(stated, "cpu", dtype, io_threads, read_timeout=read_timeout, backend=backend)
        opened: dict[str, Bundle] = {}
        for path in (Path(bundle).absolute() for bundle in bundles):
            name = path.name.removesuffix(".bundle")
            if name in opened:
                raise ConfigError(f"bundles: expected different names, found two of {shown(name)}; rename a directory")
            opened[name] = Bundle.open(path)
        return cls(opened, config)

    def __repr__(self) -> str:
        return f"<Models {', '.join(self.engines)}: {len(self._tasks)} tasks, {format_size(self.budget)}>"

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """All tasks, by ``"bundle/task"``."""
        return {whole: self.engines[name].tasks[task] for whole, (name, task) in self._tasks.items()}

    @property
    def shares(self) -> Mapping[str, int]:
        """Bytes of the budget that each bundle has now."""
        return {name: engine.budget for name, engine in self.engines.items()}

    @bracket
    def task(self, name: str, *, wait: bool = True, timeout: float | None = None) -> Iterator[Any]:
        """A task for the ``with`` block, as `Engine.task` gives it. Its pages stay until the block ends.

        Args:
            name: of the task.
            wait: whether to enter the block only when all pages are there.
            timeout: seconds to wait for other threads; None as long as it takes.

        Raises:
            UnknownTaskError: no bundle has such a task, or several have.
            BudgetError: its pages don't fit beside those in use, of whichever bundle.
            BusyError, StoreError, PageCorruptError, EngineClosedError: as of `Engine.task`.
        """
        deadline = Deadline.after(timeout)
        with ExitStack() as held:
            if not deadline.acquire(self._sharing):
                raise BusyError(
                    "another thread's prediction was still going on when the timeout passed; allow more time"
                )
            try:
                engine, task = self._enter(name)
                module = held.enter_context(engine.task(task, wait=wait, timeout=deadline.left()))
            finally:
                self._sharing.release()
            yield module

    def predict(self, name: str, inputs: Iterable[Input], **options: Any) -> list[Prediction]:
        """A task's answers to texts or images. Options and errors are those of `Engine.predict`, and of `task`."""
        with acquired(self._sharing):
            engine, task = self._enter(name)
            return engine.predict(task, inputs, **options)

    def generate(self, name: str, prompt: str | Conversation, *images: Any, **options: Any) -> Prediction:
        """A prompt's continuation. Arguments and errors are those of `Engine.generate`, and of `task`."""
        with acquired(self._sharing):
            engine, task = self._enter(name)
            return engine.generate(task, prompt, *images, **options)

    def stream(self, name: str, prompt: str | Conversation, *images: Any, **options: Any) -> Iterator[str]:
        """The pieces of a continuation, between which other tasks have their turn, as of `Engine.stream`."""
        bundle, task = self._found(name)
        pieces = self.engines[bundle].stream(task, prompt, *images, **options)
        return self._pieces(name, pieces)

    def _pieces(self, name: str, pieces: Iterator[str]) -> Iterator[str]:
        while True:
            with acquired(self._sharing):
                self._enter(name)
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @uninterrupted
    def evict(self) -> int:
        """Drop all pages that no task in use needs. Returns how many went."""
        with acquired(self._sharing):
            return sum(engine.evict() for engine in self.engines.values())

    @uninterrupted
    def close(self) -> None:
        """Close all engines, as `Engine.close` does; all of them, also where one can't close its store."""
        with ExitStack() as closing:
            for engine in self.engines.values():
                closing.callback(engine.close)

    def _found(self, name: str) -> tuple[str, str]:
        """The bundle and the task that a name means."""
        if name in self._tasks:
            return self._tasks[name]
        named = [whole for whole, (_, task) in self._tasks.items() if task == name]
        if len(named) == 1:
            return self._tasks[named[0]]
        raise UnknownTaskError(name, named or self._tasks)

    def _enter(self, name: str) -> tuple[Engine, str]:
        """Give the bundle of a task the room that the task wants. Returns its engine, and the task's name there."""
        bundle, task = self._found(name)
        found = self.engines[bundle]
        if found.current != task:  # else no other bundle's is current, and this one has its room
            for engine in self.engines.values():
                engine.deactivate()  # its pages stay until their room is wanted
            self._make_room(bundle, task)
        self.monitor.record(f"{bundle}/{task}")
        return found, task

    def _make_room(self, bundle: str, task: str) -> None:
        wish = self.engines[bundle].wish(task)
        if wish.most <= self.engines[bundle].budget:
            return
        uses = self._uses_after(bundle, task)
        holdings = {name: engine.holding(uses[name]) for name, engine in self.engines.items()}
        plan = plan_shares(bundle, wish, holdings, self.budget)
        if plan is None:
            least = wish.least + sum(holdings[name].least for name in holdings if name != bundle)
            raise BudgetError(
                f"task {bundle}/{task} does not fit into {format_room(self.budget)} beside the tasks in use and what "
                f"other bundles always keep; end their 'with' blocks, or open the bundles with {format_enough(least)}",
                least,
            )
        shares = self.shares
        for name in sorted(plan, key=lambda each: plan[each] - shares[each]):  # what shrinks shrinks first
            if plan[name] != shares[name]:
                self.engines[name].set_budget(plan[name])

    def _uses_after(self, bundle: str, task: str) -> dict[str, dict[str, float]]:
        """Expected uses of each bundle's tasks, by bundle and task, once this task is entered."""
        names = list(self._tasks)
        uses = expected_uses_after(self.monitor.followed(names), names.index(f"{bundle}/{task}"))
        found: dict[str, dict[str, float]] = {name: {} for name in self.engines}
        for whole, expected in zip(names, uses.tolist(), strict=True):
            owner, short = self._tasks[whole]
            found[owner][short] = expected
        return found


@dataclass(frozen=True)
class _Needed:
    """Bytes of a budget that a bundle always keeps, that hold its largest task, and that it can use at most."""

    kept: int
    largest: int
    whole: int

    @classmethod
    def of(cls, bundle: Bundle, dtype: str) -> _Needed:
        needs = needs_of(bundle, dtype)
        kept = needs.holding(needs.least_pages).total
        return cls(kept, smallest_budget(bundle, dtype=dtype), largest_budget(bundle))


def _budget(needed: Mapping[str, _Needed], stated: int | None) -> int:
    """The budget of all. Errors are those of `Models`."""
    if stated is None:
        return sum(each.whole for each in needed.values())
    kept = sum(each.kept for each in needed.values())
    name = max(needed, key=lambda each: needed[each].largest - needed[each].kept)
    beside = kept - needed[name].kept
    least = needed[name].largest + beside
    if stated < least:
        others = "" if len(needed) == 1 else f" beside the {format_enough(beside)} that the other bundles always keep"
        raise BudgetError(
            f"a budget of {format_room(stated)} is too small for the largest task of {name!r}{others}; the smallest "
            f"that would do is {least} bytes ({format_enough(least)})",
            least,
        )
    return stated


def _first_shares(needed: Mapping[str, _Needed], budget: int) -> dict[str, int]:
    """What each always keeps, and a part of the rest as large as what it could use of it."""
    more = {name: max(0, each.whole - each.kept) for name, each in needed.items()}
    rest, wanted = budget - sum(each.kept for each in needed.values()), max(1, sum(more.values()))
    return {name: each.kept + min(more[name], rest * more[name] // wanted) for name, each in needed.items()}
