"""The plain way to read pages: by threads of Python's, of any store into host memory.

Stores that aren't files are read like that, and where there is no native module all of them are: slower, and right.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

from weightpager.errors import StoreError, first_line
from weightpager.interrupts import Condition
from weightpager.runtime.paging.load import (
    JOIN_SECONDS,
    PageLoad,
    Priority,
    closed_while_loading,
    engine_closed,
    no_thread,
)
from weightpager.store import coalesce


@dataclass(order=True)
class _PlainRead:
    priority: Priority
    number: int
    load: PageLoad = field(compare=False)
    pages: range = field(compare=False)
    slots: list[int] = field(compare=False)


class ThreadReads:
    """Implements `Reads`. Those of higher priority go first, in the order of their submission.

    A read can be cancelled, and overtaken, until a thread begins it. The threads start with the first load.

    Args:
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, threads: int) -> None:
        self._changed = Condition()
        self._queue: list[_PlainRead] = []
        self._running: list[_PlainRead] = []
        self._numbers = count()
        self._closed = False
        self._count = threads
        self._threads: list[threading.Thread] = []
        self.reads_ended = 0

    def start(self, load: PageLoad) -> int:
        runs = coalesce(load.pages.tolist(), load.store.span, load.into.page_bytes)
        slots, at = load.slots.tolist(), 0
        with self._changed:
            if self._closed:
                raise engine_closed()
            self._start_threads()
            for run in runs:
                pages = range(run.first, run.first + run.count)
                read = _PlainRead(load.priority, next(self._numbers), load, pages, slots[at : at + run.count])
                heapq.heappush(self._queue, read)
                at += run.count
            self._changed.notify(len(runs))
        return len(runs)

    @property
    def pages(self) -> set[int]:
        with self._changed:
            return {page for read in (*self._queue, *self._running) if read.load.cancellable for page in read.pages}

    def cancel(self, but: Collection[int]) -> list[int]:
        if not self._queue:  # a load that is just beginning begins after this
            return []
        with self._changed:
            return self._take_back(lambda read: read.load.cancellable and not any(page in but for page in read.pages))

    def withdraw(self, load: PageLoad) -> None:
        with self._changed:
            self._take_back(lambda read: read.load is load)

    def close(self) -> bool:
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, []
            self._changed.notify_all()
        for read in dropped:
            read.load.end(read.pages, closed_while_loading())
        end = time.monotonic() + JOIN_SECONDS  # for all of them together
        for thread in self._threads:
            if thread is not threading.current_thread():  # the garbage collector may close the engine, in any thread
                thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _start_threads(self) -> None:
        while len(self._threads) < self._count:
            name = f"weightpager-pager-{len(self._threads)}"
            # Daemons: a read that hangs in the kernel must not keep the interpreter from ending.
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the process may have no more
                if not self._threads:
                    raise no_thread() from error
                return
            self._threads.append(thread)

    def _work(self) -> None:
        while (read := self._next()) is not None:
            with self._ending(read):
                read.load.store.read(read.pages.start, read.load.into.views(read.slots))
            del read  # else this thread keeps the last load's store and callbacks alive while it waits

    @contextmanager
    def _ending(self, read: _PlainRead) -> Iterator[None]:
        """Tell of a read's end, and why its pages didn't come if they didn't."""
        failure: BaseException | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whoever waits for the pages raises it
            failure = error
        except BaseException as error:  # noqa: BLE001 - raised there, `SystemExit` would end a process that goes on well
            failure = StoreError(f"cannot read pages: {type(error).__name__}: {first_line(error)}")
            failure.__cause__ = error
        read.load.end(read.pages, failure)
        with self._changed:  # it compares reads, and another thread may come between
            self._running.remove(read)
            self.reads_ended += 1

    def _next(self) -> _PlainRead | None:
        """The next read; None once it is closed."""
        with self._changed:
            while not self._closed:
                if self._queue:
                    self._running.append(heapq.heappop(self._queue))
                    return self._running[-1]
                self._changed.wait()
        return None

    def _take_back(self, which: Callable[[_PlainRead], bool]) -> list[int]:
        """Take back reads that have not begun. Returns their pages. The lock is held."""
        gone = [read for read in self._queue if which(read)]
        self._queue = [read for read in self._queue if not which(read)]
        heapq.heapify(self._queue)
        return [page for read in gone for page in read.pages]
