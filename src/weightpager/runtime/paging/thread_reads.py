"""Reads by threads of Python's: of any store, into any arena."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count, islice

from weightpager.errors import StoreError, first_line
from weightpager.interrupts import Condition
from weightpager.runtime.memory.page_arena import Event, Stage
from weightpager.runtime.paging.load import JOIN_SECONDS, Load, Priority, closed_while_loading, engine_closed, no_thread
from weightpager.store import PageRun, coalesce, group_runs


@dataclass(order=True)
class _Group:
    """Runs of a load that one thread reads together.

    Attributes:
        slots: the load's slots, by page.
        after: kernels that may still read these slots have run once these have passed.
    """

    priority: Priority
    number: int
    load: Load = field(compare=False)
    runs: Sequence[PageRun] = field(compare=False)
    slots: Mapping[int, int] = field(compare=False)
    after: Sequence[Event] = field(compare=False)

    @property
    def pages(self) -> list[int]:
        return [page for run in self.runs for page in range(run.first, run.first + run.count)]


class ThreadReads:
    """Implements `Reads`. Those of higher priority go first, in the order of their submission.

    A thread makes a group of short reads, or one long one, and then looks for other work. A group begins when there is
    a stage for it; until then it can be cancelled, and overtaken. The threads start with the first load.

    Args:
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, threads: int) -> None:
        self._changed = Condition()
        self._queue: list[_Group] = []
        self._running: list[_Group] = []
        self._numbers = count()
        self._closed = False
        self._count = threads
        self._threads: list[threading.Thread] = []
        self.reads_ended = 0

    def start(self, load: Load) -> int:
        runs = coalesce(load.pages.tolist(), load.store.span, load.into.page_bytes)
        groups = group_runs(runs, load.into.page_bytes)
        slots = dict(zip(load.pages.tolist(), load.slots.tolist(), strict=True))
        after = load.into.reads()
        with self._changed:
            if self._closed:
                raise engine_closed()
            self._start_threads()
            for grouped_runs in groups:
                group = _Group(load.priority, next(self._numbers), load, grouped_runs, slots, after)
                heapq.heappush(self._queue, group)
            self._changed.notify(len(groups))
        return len(runs)

    @property
    def pages(self) -> set[int]:
        with self._changed:
            return {page for group in (*self._queue, *self._running) if group.load.cancellable for page in group.pages}

    def cancel(self, but: Collection[int]) -> list[int]:
        if not self._queue:  # a load that is just beginning begins after this
            return []
        with self._changed:
            return self._take_back(
                lambda group: group.load.cancellable and not any(page in but for page in group.pages)
            )

    def withdraw(self, load: Load) -> None:
        with self._changed:
            self._take_back(lambda group: group.load is load)

    def close(self) -> bool:
        with self._changed:
            self._closed = True
            dropped, self._queue = self._queue, []
            self._changed.notify_all()
        for group in dropped:
            group.load.end(group.pages, closed_while_loading())
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
        while (begun := self._next()) is not None:
            group, stage = begun
            with self._ending(group, stage):
                slots = {page: group.slots[page] for page in group.pages}
                views = iter(stage.views(list(slots.values())))
                for run in group.runs:
                    group.load.store.read(run.first, list(islice(views, run.count)))
                stage.place(slots, group.after)
            del begun, group, stage  # else this thread keeps the last load's store and callbacks alive while it waits

    @contextmanager
    def _ending(self, group: _Group, stage: Stage) -> Iterator[None]:
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
        group.load.end(group.pages, failure)
        with self._changed:  # it compares groups, and another thread may come between
            self._running.remove(group)
            self.reads_ended += 1

    def _next(self) -> tuple[_Group, Stage] | None:
        """The next group and its stage; None once it is closed."""
        with self._changed:
            while not self._closed:
                # Nobody needs to be woken when a stage is given back: whoever did that comes here next.
                stage = self._queue[0].load.into.stage() if self._queue else None
                if stage is not None:
                    self._running.append(heapq.heappop(self._queue))
                    return self._running[-1], stage
                self._changed.wait()
        return None

    def _take_back(self, which: Callable[[_Group], bool]) -> list[int]:
        """Take back groups that have not begun. Returns their pages. The lock is held."""
        gone: list[_Group] = []
        stay: list[_Group] = []
        for group in self._queue:
            (gone if which(group) else stay).append(group)
        self._queue = stay
        heapq.heapify(self._queue)
        return [page for group in gone for page in group.pages]
