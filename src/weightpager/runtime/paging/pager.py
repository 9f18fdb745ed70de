"""Carries out loads: the only place that reads pages, and the only threads."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count, islice

from weightpager.errors import EngineClosedError, StoreError, first_line
from weightpager.runtime.memory.page_arena import PageArena, Stage
from weightpager.runtime.memory.read_fence import Event
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
        slots: page index → slot to fill.
        ended: told for each group its pages, and why they didn't come: None if they are in place and checked.
        reads: that bring them.
        after: kernels that may still read these slots have run once these have passed.
    """

    store: PageStore
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

    A thread makes a group of short reads, or one long one, and then looks for other work. A group begins when the arena
    has a stage for it; until then it can be cancelled, and overtaken.

    Args:
        arena: whose slots are filled.
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, arena: PageArena, threads: int) -> None:
        self._arena = arena
        self._changed = threading.Condition()
        self._queue: list[_Group] = []
        self._running: list[_Group] = []
        self._numbers = count()
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
    ) -> Load:
        """Start to load pages.

        Args:
            store: where they come from; it checks them.
            slots: page index → slot to fill, pages ascending. A slot belongs to its group until that has ended.
            priority: who may overtake whom.
            ended: called in a thread of the pager for every group, whether it went well or not.

        Raises:
            EngineClosedError: the pager has been closed.
        """
        runs = coalesce(list(slots), store.span, self._arena.page_bytes)
        groups = group(runs, self._arena.page_bytes)
        load = Load(store, slots, ended, len(runs), self._arena.reads())
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

    @property
    def pages(self) -> set[int]:
        """Those of all groups that have not ended."""
        with self._changed:
            return {page for some in (*self._queue, *self._running) for page in some.pages}

    def cancel(self, but: Container[int] = ()) -> list[int]:
        """Take back all groups that have not begun, except those with pages ``but``; their pages, which won't come."""
        with self._changed:
            gone = [some for some in self._queue if not any(page in but for page in some.pages)]
            self._queue = [some for some in self._queue if any(page in but for page in some.pages)]
            heapq.heapify(self._queue)
        return [page for some in gone for page in some.pages]

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

    def _next(self) -> tuple[_Group, Stage] | None:
        """The next group and its stage; None once the pager is closed."""
        with self._changed:
            while not self._closed:
                # Nobody needs to be woken when a stage is given back: whoever did that comes here next.
                stage = self._arena.stage() if self._queue else None
                if stage is not None:
                    self._running.append(heapq.heappop(self._queue))
                    return self._running[-1], stage
                self._changed.wait()
        return None
