"""A bundle that shares a budget with others: awake behind an engine, or asleep without weights in memory."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from weightpager.backends.open_backend import open_backend
from weightpager.bundle import Bundle, TaskEntry
from weightpager.bundle.state import State, state_of
from weightpager.config import EngineConfig
from weightpager.engine.bundle_change import BundleChange
from weightpager.engine.engine import Engine, engine_in_share
from weightpager.engine.input_readers import InputReaders
from weightpager.engine.report import EngineReport
from weightpager.engine.shared_prefetching import SharedPrefetching
from weightpager.errors import BudgetError, BusyError, EngineClosedError, TaskNotActiveError
from weightpager.interrupts import uninterrupted
from weightpager.machine.memory import give_back
from weightpager.readers.image_reader import ImageReader
from weightpager.readers.tokenizer import Tokenizer
from weightpager.runtime.budget import needs_of
from weightpager.runtime.planning.shares import NOTHING, Holding, Wish
from weightpager.runtime.sharing import Bounds


class SharedBundle:
    """One of the bundles of `Models`. Waking, sleeping and reloading are for one thread at a time.

    The bundle that wakes is the one that lies there then.

    Attributes:
        name: its tasks are named by it among those of others.
        path: of its directory.
        bundle: as it was when it was last opened or reloaded.
        engine: runs its tasks while it is awake; None while it sleeps.
        used: when a task of it was last asked for, by `time.monotonic`.
        bounds: what it takes of the budget, beside its tasks that are pinned or held for real time.
        waits: whether it sleeps until a task of it is asked for, as somebody wished; else it may be woken ahead.
        prefetching: who prefetches for it; None if nobody does.
    """

    def __init__(self, name: str, path: Path, config: EngineConfig) -> None:
        """Read what a bundle needs; it sleeps.

        Args:
            name: of the bundle.
            path: of its directory.
            config: how its engine runs, save for the budget. Tasks that find classes need no caches.

        Raises:
            BundleError, StoreError: it can't be used.
            UnknownTaskError: a real-time task isn't there.
        """
        self.name, self.path = name, path
        self.engine: Engine | None = None
        self.used = time.monotonic()
        self.waits = False
        self.prefetching: SharedPrefetching | None = None
        self._config = config
        self._readers: InputReaders | None = None  # of inputs and graphs; they take little beside weights
        self._users = 0
        self._read_before = 0  # by engines that are closed
        self._pinned: Counter[str] = Counter()
        self._counting = threading.Lock()  # of users
        self._opening = threading.Lock()  # of readers
        seen = state_of(path)
        self._read(Bundle.open(path), seen)

    def __repr__(self) -> str:
        return f"<SharedBundle {self.name!r}: {'asleep' if self.engine is None else 'awake'}>"

    @property
    def tasks(self) -> Mapping[str, TaskEntry]:
        return self.bundle.tasks

    @property
    def share(self) -> int:
        """Bytes of the budget that it has; 0 while it sleeps."""
        return 0 if self.engine is None else self.engine.budget

    @property
    def in_use(self) -> bool:
        """Whether it must stay awake."""
        return bool(self._users or self.bounds.staying)

    @property
    def real_time(self) -> tuple[str, ...]:
        """Its tasks that never leave memory."""
        return self._config.real_time

    def pin(self, task: str) -> None:
        """Keep a task's pages, and stay awake, until `unpin`. Errors are those of `Engine.pin`."""
        self.awake().pin(task)
        self._pinned[task] += 1
        self._bound()

    def unpin(self, task: str) -> None:
        """Undo one `pin`. Errors are those of `Engine.unpin`."""
        if not self._pinned[task]:
            raise TaskNotActiveError(f"task {self.name}/{task} is not pinned")
        self.awake().unpin(task)
        self._pinned.subtract([task])
        self._pinned = +self._pinned
        self._bound()

    def hold(self) -> Callable[[], None]:
        """Keep it awake until what is returned is called; further calls of that do nothing."""
        with self._counting:
            self._users += 1
        held = [self]

        @uninterrupted
        def release() -> None:
            with self._counting:
                if held:
                    held.pop()._users -= 1
            self.used = time.monotonic()

        return release

    @uninterrupted
    def resize(self, share: int, uses: Mapping[str, float] | None = None) -> None:
        """Have so many bytes of the budget, for which it wakes. Errors are those of `Engine`, and of `set_share`."""
        if self.engine is not None:
            self.engine.set_share(share, uses)
            return
        # Rows of tables come when they are looked up: to read thousands would delay the first answer.
        config = replace(self._running, budget=share)
        prefetching = None if self.prefetching is None else partial(self.prefetching.part, self)
        self.engine = engine_in_share(self.bundle, config, self._opened_readers(), prefetching)
        self.used = time.monotonic()

    def _opened_readers(self) -> InputReaders:
        with self._opening:
            if self._readers is None:
                self._readers = InputReaders(open_backend(self.bundle, self._config.backend, "cpu"))
            return self._readers

    def look(self) -> None:
        """Read what a bundle that sleeps has become, as `reload` does. Errors are those of it."""
        if self.engine is None and self._seen != state_of(self.path):
            self.reload()

    def reader(self) -> Tokenizer | ImageReader:
        """A new reader of its tasks' inputs, also while it sleeps. Errors are those of `Engine.reader`."""
        return self._opened_readers().new(self.bundle)

    def check_idle(self) -> None:
        """Check that it may go to sleep.

        Raises:
            BusyError: it is in use.
        """
        if self.in_use:
            raise BusyError(
                f"expected a bundle that may go to sleep, found {self.name!r}, of which a task is in use, pinned or "
                "held for real time"
            )

    def rest(self) -> None:
        """Close its engine, if it is awake: pages, parameters, tables, caches and programs leave memory.

        Graphs and tokenizer stay for a return.

        Raises:
            StoreError: its store couldn't be closed; it sleeps all the same.
        """
        engine, self.engine = self.engine, None
        if engine is not None:
            self._read_before += engine.report().bytes_read
            try:
                engine.close()
            finally:
                if self._readers is not None:
                    self._readers.backend.rest()
                del engine
                give_back()  # programs are many small blocks

    def close(self) -> None:
        """As `rest`; the tokenizer leaves memory, too."""
        try:
            self.rest()
        finally:
            with self._opening:
                readers = self._readers
                self._readers = None if readers is None else InputReaders(readers.backend)
            if readers is not None:
                readers.close()
                del readers
                give_back()

    def report(self) -> EngineReport | None:
        """The state of its engine, whose bytes are counted since it first woke; None while it sleeps."""
        engine = self.engine
        if engine is None:
            return None
        report = engine.report()
        return replace(report, bytes_read=self._read_before + report.bytes_read)

    @property
    def bytes_read(self) -> int:
        """Bytes of pages and rows that were read since it first woke."""
        report = self.report()
        return self._read_before if report is None else report.bytes_read

    def awake(self) -> Engine:
        """Its engine.

        Raises:
            EngineClosedError: it has gone to sleep.
        """
        if self.engine is None:
            raise EngineClosedError(f"the bundle {self.name!r} has gone to sleep; ask again")
        return self.engine

    def holding(self, uses: Mapping[str, float]) -> Holding:
        """What it has of the budget, by the expected uses of its tasks."""
        if self.engine is None:
            return NOTHING
        return replace(self.engine.holding(uses), uses=None if self.in_use else sum(uses.values()))

    def wanted(self, uses: Mapping[str, float]) -> npt.NDArray[np.float64]:
        """Expected uses of the pages that it lacks while it is awake, by those of its tasks, descending."""
        return np.zeros(0) if self.engine is None else self.engine.wanted(uses)

    def wish(self, task: str) -> Wish:
        """What it wants for a task, which it has."""
        return self.bounds.wish(task) if self.engine is None else self.engine.wish(task)

    def reload(self) -> BundleChange:
        """Take over what has become of it, as of `Engine.reload`. Where an idle one would need more room, it sleeps."""
        before, seen = self.bundle, state_of(self.path)
        if self.engine is not None:
            try:
                change = self.engine.reload()
            except BudgetError:
                if self.in_use:
                    raise
            else:
                self._read(self.engine.bundle, seen)
                return change
        bundle = Bundle.open(self.path)
        change = BundleChange.between(before, bundle)
        self._read(bundle, seen)
        self.close()
        with self._opening:  # its graphs may be others
            self._readers = None
        return change

    def _read(self, bundle: Bundle, seen: State | None) -> None:
        """Take over what a bundle needs, which was in this state before it was opened."""
        config = self._config
        for task in config.real_time:
            bundle.task(task)
        if not any(task.writes for task in bundle.tasks.values()):
            config = replace(config, kv_reserve=0, prefix_cache=0)
        needs = needs_of(bundle, config.dtype, config.rows)
        self._needs = replace(needs, kv_reserve=config.kv_reserve, prefix_cache=config.prefix_cache)
        self._running, self.bundle, self._seen = config, bundle, seen
        self._bound()

    def _bound(self) -> None:
        """Work out what it takes, whenever that may have changed."""
        self.bounds = Bounds.of(self.bundle, self._needs, {*self.real_time, *self._pinned})
