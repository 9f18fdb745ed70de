"""Carries out loads: the only place that reads pages, and the only threads."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import count

from weightpager.errors import EngineClosedError
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
    """

    store: PageStore
    slots: Mapping[int, int]
    ended: Callable[[Load, Collection[int], BaseException | None], None]
    reads: int


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

    Args:
        slot: gives a slot's bytes.
        page_bytes: bytes of a page.
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, slot: Callable[[int], memoryview], page_bytes: int, threads: int) -> None:
        self._slot = slot
        self._page_bytes = page_bytes
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
        """
        runs = coalesce(list(slots), store.span, self._page_bytes)
        load = Load(store, slots, ended, len(runs))
        with self._changed:
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
        while True:
            with self._changed:
                while not self._queue and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                read = heapq.heappop(self._queue)
            read.load.ended(read.load, read.pages, self._failure(read))
            del read  # else this thread keeps the last load's store and callbacks alive while it waits

    def _failure(self, read: _Read) -> BaseException | None:
        slots = read.load.slots
        try:
            read.load.store.read(read.run.first, [self._slot(slots[page]) for page in read.pages])
        except BaseException as error:  # noqa: BLE001 - whoever waits for the pages raises it
            return error
        return None
