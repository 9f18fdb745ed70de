"""Carries out loads: the only place that reads pages, and the only threads."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count

from weightpager.errors import EngineClosedError
from weightpager.runtime.page_arena import PageArena, Stage
from weightpager.runtime.read_fence import Event
from weightpager.store import PageStore, Run, coalesce

_JOIN_SECONDS = 5.0
"""How long closing waits for a read that hangs."""


class Priority(IntEnum):
    """Whose reads go first; what is being read already is finished."""

    REAL_TIME = 0
    ON_DEMAND = 1
    PREFETCH = 2


@dataclass(frozen=True, eq=False)
class Load:
    """Pages on their way into slots. Reads still queued can be cancelled.

    Attributes:
        store: where the pages come from.
        slots: page index → slot to fill.
        ended: told for each read its pages, and why they didn't come: None if they are in place and checked.
        reads: that bring them.
        after: kernels that may still read these slots have run once these have passed.
    """

    store: PageStore
    slots: Mapping[int, int]
    ended: Callable[[Load, Collection[int], BaseException | None], None]
    reads: int
    after: Sequence[Event]


@dataclass(order=True)
class _Read:
    priority: Priority
    number: int
    load: Load = field(compare=False)
    run: Run = field(compare=False)

    @property
    def pages(self) -> range:
        return range(self.run.first, self.run.first + self.run.count)


class Pager:
    """Reads pages into slots on threads of its own, those of higher priority first, in the order of their submission.

    A read begins when the arena has a stage for it; until then it can be cancelled, and overtaken.

    Args:
        arena: whose slots are filled.
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, arena: PageArena, threads: int) -> None:
        self._arena = arena
        self._changed = threading.Condition()
        self._queue: list[_Read] = []
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
        ended: Callable[[Load, Collection[int], BaseException | None], None],
    ) -> Load:
        """Start to load pages.

        Args:
            store: where they come from; it checks them.
            slots: page index → slot to fill, pages ascending. A slot belongs to its read until that has ended.
            priority: who may overtake whom.
            ended: called in a thread of the pager for every read, whether it went well or not.

        Raises:
            EngineClosedError: the pager has been closed.
        """
        runs = coalesce(list(slots), store.span, self._arena.page_bytes)
        load = Load(store, slots, ended, len(runs), self._arena.reads())
        with self._changed:
            if self._closed:
                raise EngineClosedError("the engine has been closed; open the bundle again")
            for run in runs:
                heapq.heappush(self._queue, _Read(priority, next(self._numbers), load, run))
            self._changed.notify(len(runs))
        return load

    def cancel(self, load: Load, but: Collection[int] = ()) -> list[int]:
        """Take back the reads that have not begun, except those of pages ``but``; their pages, which won't come."""
        with self._changed:
            gone = [read for read in self._queue if read.load is load and not set(read.pages).intersection(but)]
            for read in gone:
                self._queue.remove(read)
            heapq.heapify(self._queue)
        return [page for read in gone for page in read.pages]

    def close(self) -> bool:
        """Drop what is queued and end the threads; False if one hangs in a read and had to be left."""
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, []
            self._changed.notify_all()
        for read in dropped:
            read.load.ended(
                read.load, read.pages, EngineClosedError("the engine was closed while pages were being loaded")
            )
        for thread in self._threads:
            thread.join(_JOIN_SECONDS)
        return not any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (begun := self._next()) is not None:
            read, stage = begun
            read.load.ended(read.load, read.pages, _failure(read, stage))
            del begun, read, stage  # else this thread keeps the last load's store and callbacks alive while it waits

    def _next(self) -> tuple[_Read, Stage] | None:
        """The next read and its stage; None once the pager is closed."""
        with self._changed:
            while not self._closed:
                # Nobody needs to be woken when a stage is given back: whoever did that comes here next.
                stage = self._arena.stage() if self._queue else None
                if stage is not None:
                    return heapq.heappop(self._queue), stage
                self._changed.wait()
        return None


def _failure(read: _Read, stage: Stage) -> BaseException | None:
    slots = {page: read.load.slots[page] for page in read.pages}
    try:
        read.load.store.read(read.run.first, stage.views(list(slots.values())))
        stage.place(slots, read.load.after)
    except BaseException as error:  # noqa: BLE001 - whoever waits for the pages raises it
        return error
    finally:
        stage.give_back()
    return None
