"""Carries out loads: the only place that reads pages, and the only threads."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count, islice

import numpy as np
import numpy.typing as npt

from weightpager.errors import EngineClosedError, StoreError, first_line
from weightpager.runtime.memory.page_arena import Stage, StageSource
from weightpager.runtime.memory.page_buffer import PageBuffer
from weightpager.runtime.memory.read_fence import Event
from weightpager.runtime.paging.page_waits import WholeRead
from weightpager.runtime.planning.plans import Pages
from weightpager.store import PageStore, Run, coalesce, group

_JOIN_SECONDS = 5.0
"""How long closing waits for a read that hangs."""


class Priority(IntEnum):
    """Whose reads go first; what is being read already is finished."""

    REAL_TIME = 0
    ON_DEMAND = 1
    PREFETCH = 2


@dataclass(frozen=True, eq=False)
class Load:
    """Pages on their way into slots.

    Attributes:
        store: where the pages come from.
        into: whose slots they are.
        slots: page index → slot to fill.
        ended: told for each group its pages, and why they didn't come: None if they are in place and checked.
        reads: that bring them.
        after: kernels that may still read these slots have run once these have passed.
    """

    store: PageStore
    into: StageSource
    slots: Mapping[int, int]
    ended: Callable[[Collection[int], BaseException | None], None]
    reads: int
    after: Sequence[Event]


@dataclass(order=True)
class _Group:
    priority: Priority
    number: int
    load: Load = field(compare=False)
    runs: Sequence[Run] = field(compare=False)

    @property
    def pages(self) -> list[int]:
        return [page for run in self.runs for page in range(run.first, run.first + run.count)]


class Pager:
    """Reads pages into slots on threads of its own, those of higher priority first, in the order of their submission.

    A thread makes a group of short reads, or one long one, and then looks for other work. A group begins when there is
    a stage for it; until then it can be cancelled, and overtaken.

    Args:
        arena: whose slots are filled where a load doesn't say else.
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, arena: StageSource, threads: int) -> None:
        self._arena = arena
        self._changed = threading.Condition()
        self._queue: list[_Group] = []
        self._running: list[_Group] = []
        self._numbers = count()
        self._ended = 0
        self._closed = False
        # Daemons: a read that hangs in the kernel must not keep the interpreter from ending.
        self._threads = [
            threading.Thread(target=self._work, name=f"weightpager-pager-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def load(
        self,
        store: PageStore,
        slots: Mapping[int, int],
        priority: Priority,
        ended: Callable[[Collection[int], BaseException | None], None],
        into: StageSource | None = None,
    ) -> Load:
        """Start to load pages.

        Args:
            store: where they come from; it checks them.
            slots: page index → slot to fill, pages ascending. A slot belongs to its group until that has ended.
            priority: who may overtake whom.
            ended: called in a thread of the pager for every group, whether it went well or not.
            into: whose slots they are; the arena's if None.

        Raises:
            EngineClosedError: the pager has been closed.
        """
        into = self._arena if into is None else into
        runs = coalesce(list(slots), store.span, into.page_bytes)
        groups = group(runs, into.page_bytes)
        load = Load(store, into, slots, ended, len(runs), into.reads())
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine has been closed; open the bundle again")
            try:
                for some in groups:
                    heapq.heappush(self._queue, _Group(priority, next(self._numbers), load, some))
                self._changed.notify(len(groups))
            except BaseException:  # Ctrl-C, say: what is queued by now would stay there until something else is loaded
                self._changed.notify_all()
                raise
        return load

    def read(
        self,
        store: PageStore,
        pages: Pages,
        into: npt.NDArray[np.uint8],
        patience: float,
        priority: Priority = Priority.ON_DEMAND,
    ) -> int:
        """Read pages into memory of the caller's own, and wait until all are there and checked; how many reads it took.

        No slot, no page table and no load of an arena has to do with it. The caller holds no lock of paging.

        Args:
            store: where they come from; it checks them.
            pages: int64 [N], ascending, each once.
            into: uint8 [N, page_bytes], filled in the order of ``pages``; contiguous and aligned as `PageBuffer` says.
            patience: seconds in which no read of the pager ends, after which storage is given up.
            priority: of the reads.

        Raises:
            StoreError, PageCorruptError: a page can't be read, or isn't what it should be; what ``into`` holds may not
                be used, but may be read into again.
            StoreTimeoutError: storage hangs. A late answer may still be written to ``into``, which must be dropped.
            EngineClosedError: the pager has been closed.
        """
        whole = WholeRead(len(pages), patience, lambda: self._ended)
        rows = dict(zip(pages.tolist(), range(len(pages)), strict=True))
        load = self.load(store, rows, priority, whole.told, PageBuffer(into))
        try:
            whole.wait()
        except BaseException:  # Ctrl-C too: reads of it that nobody waits for need not begin
            with self._changed:
                self._take_back(lambda some: some.load is load)
            raise
        return load.reads

    @property
    def pages(self) -> set[int]:
        """Those of all groups that have not ended, and fill slots of the arena."""
        with self._changed:
            return {page for some in (*self._queue, *self._running) if self._in_arena(some) for page in some.pages}

    def cancel(self, but: Container[int] = ()) -> list[int]:
        """Take back all groups that have not begun, except those with pages ``but``; their pages, which won't come.

        What `read` waits for is not taken back.
        """
        with self._changed:
            return self._take_back(lambda some: self._in_arena(some) and not any(page in but for page in some.pages))

    def close(self) -> bool:
        """Drop what is queued and end the threads; False if one hangs in a read and had to be left."""
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, []
            self._changed.notify_all()
        for some in dropped:
            some.load.ended(some.pages, EngineClosedError("the engine was closed while pages were being loaded"))
        for thread in self._threads:
            if thread is not threading.current_thread():  # the garbage collector may close the engine, in any thread
                thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (begun := self._next()) is not None:
            some, stage = begun
            with self._ending(some, stage):
                slots = {page: some.load.slots[page] for page in some.pages}
                views = iter(stage.views(list(slots.values())))
                for run in some.runs:
                    some.load.store.read(run.first, list(islice(views, run.count)))
                stage.place(slots, some.load.after)
            del begun, some, stage  # else this thread keeps the last load's store and callbacks alive while it waits

    @contextmanager
    def _ending(self, some: _Group, stage: Stage) -> Iterator[None]:
        """Tell of a group's end, and why its pages didn't come if they didn't."""
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whoever waits for the pages raises it
            failure = error
        except BaseException as error:  # noqa: BLE001 - raised there, `SystemExit` would end a process that goes on well
            failure = StoreError(f"cannot read pages: {type(error).__name__}: {first_line(error)}")
            failure.__cause__ = error
        stage.give_back()
        some.load.ended(some.pages, failure)
        with self._changed:  # it compares groups, and another thread may come between
            self._running.remove(some)
            self._ended += 1

    def _in_arena(self, some: _Group) -> bool:
        return some.load.into is self._arena

    def _take_back(self, which: Callable[[_Group], bool]) -> list[int]:
        """Groups that have not begun won't; the pages of those that were taken back. The lock is held."""
        gone: list[_Group] = []
        stay: list[_Group] = []
        for some in self._queue:
            (gone if which(some) else stay).append(some)
        self._queue = stay
        heapq.heapify(self._queue)
        return [page for some in gone for page in some.pages]

    def _next(self) -> tuple[_Group, Stage] | None:
        """The next group and its stage; None once the pager is closed."""
        with self._changed:
            while not self._closed:
                # Nobody needs to be woken when a stage is given back: whoever did that comes here next.
                stage = self._queue[0].load.into.stage() if self._queue else None
                if stage is not None:
                    self._running.append(heapq.heappop(self._queue))
                    return self._running[-1], stage
                self._changed.wait()
        return None
