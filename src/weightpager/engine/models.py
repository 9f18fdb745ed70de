"""`Models`: several bundles that share one memory budget."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.answers.kinds import Prediction
from weightpager.answers.predict import Input
from weightpager.answers.token_reader import Conversation
from weightpager.bundle import Bundle, TaskEntry
from weightpager.config import EngineConfig, format_size, parse_size
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.engine import Engine
from weightpager.engine.shared_bundle import SharedBundle
from weightpager.engine.shared_prefetching import SharedPrefetching
from weightpager.errors import BusyError, ConfigError, EngineClosedError, shown
from weightpager.interrupts import acquired, in_process, uninterrupted
from weightpager.runtime.bracket import Closing, bracket
from weightpager.runtime.paging.state import Deadline
from weightpager.runtime.prediction.history import HistoryFile
from weightpager.runtime.prediction.planner import Planner
from weightpager.runtime.prediction.task_monitor import TaskMonitor, expected_uses_after
from weightpager.runtime.shared_budget import MOST, SharedBudget, by_bundle, find_task, name_of, named

_Answer = TypeVar("_Answer")


class Models(Closing):
    """Runs the tasks of several bundles inside one memory budget.

    Each bundle that is awake has an engine with a share of the budget. Before a task is entered whose pages lack room,
    its bundle's share grows by what is worth least anywhere: memory that holds no page, then pages by the expected
    uses of their tasks, over all bundles. A bundle may give all of it: it sleeps then, and wakes when a task of it is
    asked for. One of which a task is in use stays awake.

    A task is named ``"bundle/task"`` by the name of the bundle's directory without its ``.bundle``, or ``"task"``
    where one bundle alone has it. Predictions of several threads follow one another. Outputs are those of an engine.

    Run tasks by this object: what an engine of it is asked directly has no more than its share, and no claim to it.

    Attributes:
        monitor: which task ran when, over all bundles.
    """

    @uninterrupted
    def __init__(self, paths: Mapping[str, Path], config: EngineConfig) -> None:
        """Open bundles; `from_pretrained` is the usual way.

        Args:
            paths: of bundles, by name.
            config: budget of all, and how each engine runs. Real-time tasks have whole names.

        Raises:
            BudgetError: the budget doesn't hold the largest task of each bundle, beside real-time tasks of others.
            BundleError, StoreError: a bundle can't be used.
            ConfigError: the device isn't there, or its arenas can't change their size.
        """
        if config.device != "cpu":
            raise ConfigError(f"device: expected 'cpu' for bundles that share a budget, got {config.device!r}")
        real_time: dict[str, list[str]] = {}
        for name in config.real_time:
            owner, task = _owner(name, paths)
            real_time.setdefault(owner, []).append(task)
        self._config = replace(config, budget=None, real_time=(), history=None, prefetch=False)
        self._process = os.getpid()
        self._closed = False
        self._sharing = threading.RLock()  # held by whoever enters a task or predicts, before any engine's locks
        opened = {
            name: SharedBundle(name, path, replace(self._config, real_time=tuple(real_time.get(name, ()))))
            for name, path in paths.items()
        }
        self._shared = SharedBudget(opened, config.budget)
        self.monitor = TaskMonitor(file=None if config.history is None else HistoryFile(config.history))
        self._prefetching: SharedPrefetching | None = None
        if config.prefetch:
            self._prefetching = SharedPrefetching(self._shared, self._sharing, self.monitor, config.prefetch)
            weakref.finalize(self, in_process, self._process, self._prefetching.close)
        for bundle in opened.values():
            bundle.prefetching = self._prefetching
        with ExitStack() as undone:
            undone.callback(self.close)
            with uninterrupted.lifted():
                for bundle in opened.values():  # so that one that can't run is refused now
                    self._shared.make_room(bundle, bundle.bounds.smallest, dict)
            undone.pop_all()

    @classmethod
    def from_pretrained(
        cls,
        bundles: Sequence[str | Path],
        *,
        budget: str | int | None = None,
        dtype: str = "auto",
        io_threads: int = 8,
        kv_reserve: str | int = 0,
        prefix_cache: str | int = 0,
        real_time: Sequence[str] = (),
        read_timeout: float = 30.0,
        prefetch: bool | Planner = False,
        history: str | Path | None = None,
        backend: str = "auto",
    ) -> Models:
        """Open bundle directories under one budget. Of their pages only those of real-time tasks are loaded.

        Args:
            bundles: directories with different names.
            budget: memory for the weights of all, such as ``"64MiB"``, or bytes; None for all that they hold.
            dtype: what tasks compute in, as of `Engine.from_pretrained`, likewise all that follow.
            io_threads: reads in flight of each bundle.
            kv_reserve: for each bundle whose tasks write, while it is awake.
            prefix_cache: likewise.
            real_time: whole names of tasks; their bundles never sleep.
            read_timeout: seconds without any page after which a load fails.
            prefetch: whether to prefetch, between requests, what the next task of whichever bundle probably needs; or a
                function that foretells it, by whole names, as of `Engine.from_pretrained`.
            history: file that keeps which task of which bundle ran when.
            backend: what runs tasks.

        Raises:
            ConfigError: an argument is wrong, or two bundles have one name.
            BudgetError: it is too small; says the smallest that would do.
            BundleError, StoreError: a bundle can't be used.
        """
        paths = named(bundles)
        config = EngineConfig.stated(
            budget=budget,
            dtype=dtype,
            io_threads=io_threads,
            kv_reserve=kv_reserve,
            prefix_cache=prefix_cache,
            real_time=real_time,
            read_timeout=read_timeout,
            prefetch=prefetch,
            history=history,
            backend=backend,
        )
        return cls(paths, config)

    def __repr__(self) -> str:
        return f"<Models {', '.join(self.bundles)}: {len(self.tasks)} tasks, {format_size(self.budget)}>"

    @property
    def bundles(self) -> Mapping[str, SharedBundle]:
        """The bundles by name, and whether each is awake."""
        return self._shared.bundles

    @property
    def budget(self) -> int:
        """Bytes for the weights of all."""
        return self._shared.budget

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        """All tasks, by ``"bundle/task"``."""
        return {f"{name}/{task}": each.tasks[task] for name, each in self.bundles.items() for task in each.tasks}

    @property
    def engines(self) -> Mapping[str, Engine]:
        """The engine of each bundle that is awake, by its name, for reports."""
        return {name: each.engine for name, each in self.bundles.items() if each.engine is not None}

    @property
    def shares(self) -> Mapping[str, int]:
        """Bytes of the budget that each bundle has now; 0 of those that sleep."""
        return self._shared.shares

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
            BundleError: its bundle slept, and can't be used any more.
            BusyError, StoreError, PageCorruptError, EngineClosedError: as of `Engine.task`.
        """
        deadline = Deadline.after(timeout)
        with ExitStack() as held:
            if not deadline.acquire(self._sharing):
                raise BusyError(
                    "another thread's prediction was still going on when the timeout passed; allow more time"
                )
            try:
                bundle, task = self._enter(name)
                held.callback(bundle.hold())
                module = held.enter_context(bundle.awake().task(task, wait=wait, timeout=deadline.left()))
            finally:
                self._sharing.release()
            yield module

    def predict(self, name: str, inputs: Iterable[Input], **options: Any) -> list[Prediction]:
        """A task's answers to texts or images. Options and errors are those of `Engine.predict`, and of `task`."""
        return self._asked(name, lambda engine, task: engine.predict(task, inputs, **options))

    def generate(self, name: str, prompt: str | Conversation, *images: Any, **options: Any) -> Prediction:
        """A prompt's continuation. Arguments and errors are those of `Engine.generate`, and of `task`."""
        return self._asked(name, lambda engine, task: engine.generate(task, prompt, *images, **options))

    def embed(self, name: str, texts: Iterable[str], **options: Any) -> npt.NDArray[np.float32]:
        """Vectors of texts. Options and errors are those of `Engine.embed`, and of `task`."""
        return self._asked(name, lambda engine, task: engine.embed(task, texts, **options))

    def stream(self, name: str, prompt: str | Conversation, *images: Any, **options: Any) -> Iterator[str]:
        """The pieces of a continuation, between which other tasks have their turn, as of `Engine.stream`.

        Its bundle stays awake as long as there may be more of them.
        """
        with acquired(self._sharing):
            bundle, task = self._enter(name, is_visit=False)
            release = bundle.hold()
            try:
                pieces = self._pieces(name, bundle.awake().stream(task, prompt, *images, **options), release)
            except BaseException:
                release()
                raise
        weakref.finalize(pieces, release)  # nobody may ever ask for the first
        return pieces

    def _pieces(self, name: str, pieces: Iterator[str], release: Callable[[], None]) -> Iterator[str]:
        try:
            while True:
                with acquired(self._sharing):
                    self._enter(name)
                    piece = next(pieces, None)
                if piece is None:
                    return
                yield piece
        finally:
            release()

    def activate(self, name: str) -> Engine:
        """Make a task the current one, as `Engine.activate` does. Returns its engine. Errors are those of `task`."""
        with acquired(self._sharing):
            bundle, task = self._enter(name)
            engine = bundle.awake()
            engine.activate(task)
            return engine

    @uninterrupted
    def deactivate(self) -> None:
        """Leave the current task, if any."""
        with acquired(self._sharing):
            for engine in self.engines.values():
                engine.deactivate()

    def pin(self, name: str) -> None:
        """Load a task and keep its pages until `unpin`, as of `Engine.pin`; its bundle stays awake."""
        with acquired(self._sharing):
            bundle, task = self._enter(name, is_visit=False)
            bundle.pin(task)

    def unpin(self, name: str) -> None:
        """Undo one `pin`. Errors are those of `Engine.unpin`."""
        with acquired(self._sharing):
            bundle, task = self._find(name)
            bundle.unpin(task)

    @uninterrupted
    def evict(self) -> int:
        """Drop all pages that no task in use needs. Returns how many went."""
        with acquired(self._sharing):
            return sum(engine.evict() for engine in self.engines.values())

    def wake(self, name: str) -> SharedBundle:
        """Have a bundle awake, at the expense of others where its smallest task needs room. Returns the bundle.

        Raises:
            ConfigError: there is no such bundle.
            BudgetError, BundleError, StoreError: as of `task`.
        """
        with acquired(self._sharing):
            bundle = self._bundle(name)
            if bundle.engine is None:
                self._enter(f"{name}/{bundle.bounds.smallest}", is_visit=False)
            return bundle

    def sleep(self, name: str) -> None:
        """Put a bundle to sleep: all that it has in memory goes. It wakes when a task of it is asked for.

        Raises:
            ConfigError: there is no such bundle.
            BusyError: it is in use.
        """
        with acquired(self._sharing):
            bundle = self._bundle(name)
            bundle.check_idle()
            self._shared.put_to_sleep(bundle)
            bundle.waits = True
            bundle.close()

    def sleep_idle(self, seconds: float) -> list[str]:
        """Put to sleep all of which nothing was asked for so long, and that aren't in use. Returns their names."""
        with acquired(self._sharing):
            before = time.monotonic() - seconds
            awake = (bundle for bundle in self.bundles.values() if bundle.engine is not None)
            idle = [bundle.name for bundle in awake if bundle.used <= before and not bundle.in_use]
            for name in idle:
                self.sleep(name)
            return idle

    @uninterrupted
    def set_budget(self, budget: str | int) -> None:
        """Use more or less memory from now on. What must go goes by its worth, as where a task wants room.

        Raises:
            ConfigError: it is no size.
            BudgetError: it doesn't hold the largest task of each bundle, or the tasks in use; nothing has changed.
        """
        size = parse_size(budget, "budget")
        with acquired(self._sharing):
            self._check_open()
            self.deactivate()
            self._shared.resize(size, partial(self._uses_after, self.monitor.current))

    @uninterrupted
    def reload(self, name: str) -> BundleChange:
        """Take over what has become of a bundle, as of `Engine.reload`. Others aren't touched.

        Raises:
            ConfigError: there is no such bundle.
            BundleError, StoreError, BusyError, BudgetError: as of `Engine.reload`; nothing has changed.
        """
        with acquired(self._sharing):
            self._check_open()
            change = self._bundle(name).reload()
            self._shared.spread()
            return change

    def add(self, path: str | Path) -> str:
        """Open one more bundle, which sleeps until a task of it is asked for. Returns its name.

        Raises:
            ConfigError: there is one of its name, or there are too many.
            BudgetError: the budget doesn't hold its largest task; nothing has changed.
            BundleError, StoreError: it can't be used.
        """
        path = Path(path).absolute()
        name = name_of(path)
        with acquired(self._sharing):
            self._check_open()
            if name in self.bundles or len(self.bundles) == MOST:
                found = f"{MOST} already" if len(self.bundles) == MOST else f"another of {shown(name)}"
                raise ConfigError(f"bundles: expected at most {MOST} with different names, found {found}")
            bundle = SharedBundle(name, path, self._config)
            bundle.prefetching = self._prefetching
            self._shared.replace({**self.bundles, name: bundle})
            return name

    def remove(self, name: str) -> None:
        """Let a bundle go that isn't the last. Errors are those of `sleep`."""
        with acquired(self._sharing):
            left = {other: bundle for other, bundle in self.bundles.items() if other != name}
            if not left:
                raise BusyError(f"expected another bundle beside {name!r}, found none")
            self.sleep(name)
            self._shared.replace(left)

    @uninterrupted
    def close(self) -> None:
        """Close all engines, as `Engine.close` does; all of them, also where one can't close its store."""
        if os.getpid() != self._process:
            return
        self._closed = True
        with ExitStack() as closing:
            closing.callback(self.monitor.close)
            for bundle in self.bundles.values():
                closing.callback(bundle.close)
            if self._prefetching is not None:
                closing.callback(self._prefetching.close)

    def check_fits(self, name: str) -> None:
        """Check that the budget ever holds a task, beside real-time tasks of all bundles. Loads nothing.

        Raises:
            UnknownTaskError: no bundle has such a task, or several have.
            TaskTooLargeError: it never does; says the smallest budget that would do.
        """
        self._shared.check_fits(*self._find(name))

    def fit_together(self, names: Iterable[str]) -> bool:
        """Whether tasks may have turns, none of whose bundles sleeps meanwhile. Errors are those of `check_fits`."""
        return self._shared.fit_together([self._find(name) for name in names])

    def _asked(self, name: str, ask: Callable[[Engine, str], _Answer]) -> _Answer:
        bundle, task = self._find(name)
        if task in bundle.real_time:  # it is there, and waits for nobody
            return ask(bundle.awake(), task)
        with acquired(self._sharing):
            bundle, task = self._enter(name)
            return ask(bundle.awake(), task)

    def _bundle(self, name: str) -> SharedBundle:
        if name not in self.bundles:
            raise ConfigError(f"bundle: expected one of {', '.join(self.bundles)}, got {shown(name)}")
        return self.bundles[name]

    def _find(self, name: str) -> tuple[SharedBundle, str]:
        """The bundle and the task that a name means."""
        bundles = self.bundles
        owner, task = find_task(name, {each.name: each.tasks for each in bundles.values()})
        return bundles[owner], task

    @uninterrupted
    def _enter(self, name: str, *, is_visit: bool = True) -> tuple[SharedBundle, str]:
        """Wake the bundle of a task, and give it the room that the task wants. Returns it, and the task's name there.

        The lock is held by the caller.
        """
        self._check_open()
        bundle, task = self._find(name)
        bundle.look()
        bundle.bundle.task(task)
        bundle.used, bundle.waits = time.monotonic(), False
        if bundle.engine is None or bundle.engine.current != task:  # else this is the current one, and has its room
            self.deactivate()  # pages stay until their room is wanted
            self._shared.make_room(bundle, task, partial(self._uses_after, f"{bundle.name}/{task}"))
        if is_visit:
            self.monitor.record(f"{bundle.name}/{task}")
        return bundle, task

    def _uses_after(self, current: str | None) -> dict[str, dict[str, float]]:
        """Expected uses of each bundle's tasks, by bundle and task, once a task is entered."""
        names = list(self.tasks)
        if current not in names:
            return {}
        return by_bundle(names, expected_uses_after(self.monitor.followed(names), names.index(current)))

    def _check_open(self) -> None:
        if os.getpid() != self._process:
            raise EngineClosedError("the models belong to the process that this one was forked from; open the bundles")
        if self._closed:
            raise EngineClosedError("the models are closed; open the bundles again")


def _owner(name: str, paths: Mapping[str, Path]) -> tuple[str, str]:
    """The bundle and the task that the name of a real-time task means.

    Raises:
        ConfigError: no bundle has such a task, or several have.
        BundleError, StoreError: a bundle can't be used.
    """
    owner, _, task = name.partition("/")
    if owner in paths:
        return owner, task
    having = [owner for owner, path in paths.items() if name in Bundle.open(path).tasks]
    if len(having) == 1:
        return having[0], name
    raise ConfigError(f"real_time: expected names such as {next(iter(paths))}/TASK, got {shown(name)}")
