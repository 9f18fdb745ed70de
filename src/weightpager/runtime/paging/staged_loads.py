"""Loads into a device's memory: pages are read into host memory as any others, and copied from there."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import count
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt

from weightpager.runtime.memory.host_arena import PageBuffer
from weightpager.runtime.memory.page_arena import Event, Stage, StagedMemory
from weightpager.runtime.paging.load import (
    PageLoad,
    Priority,
    ReadEnd,
    closed_while_loading,
    engine_closed,
    no_thread,
    tell,
)
from weightpager.runtime.planning.pages import Pages
from weightpager.store import VerifyingStore, coalesce, group_runs


@dataclass(order=True)
class _Piece:
    """Pages of a load that pass through one stage together. They come together, or not at all.

    Attributes:
        load: stands for all pieces of one load.
        slots: page number → slot on the device.
        after: kernels that may still read these slots have run once these have passed.
        left: pages that haven't been read yet.
        error: why one of them won't be.
    """

    priority: Priority
    number: int
    load: object = field(compare=False)
    store: VerifyingStore = field(compare=False)
    slots: dict[int, int] = field(compare=False)
    after: Sequence[Event] = field(compare=False)
    on_read_end: ReadEnd = field(compare=False)
    left: int = field(compare=False)
    stage: Stage | None = field(default=None, compare=False)
    error: BaseException | None = field(default=None, compare=False)

    def end(self, error: BaseException | None) -> None:
        tell(self.on_read_end, list(self.slots), error)


class StagedLoads:
    """Has pages read into stages, and places them from there. What has no stage yet can be cancelled, and overtaken.

    A thread of its own places what has been read, in that order, and then begins what waits for the stage: a device
    copies in order anyway, and those that read aren't held up.
    """

    def __init__(self, arena: StagedMemory, read: Callable[[PageLoad], int]) -> None:
        """Nothing is on its way.

        Args:
            arena: the memory that is filled.
            read: begins a load into host memory; it is never told of in the thread that calls this.
        """
        self._arena = arena
        self._read = read
        self._lock = threading.RLock()  # of all that follows; a garbage collection may end a load in any thread
        self._waiting: list[_Piece] = []
        self._begun: list[_Piece] = []
        self._numbers = count()
        self._closed = False
        self._came: SimpleQueue[_Piece | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def pages(self) -> set[int]:
        """Pages of loads that have not ended."""
        with self._lock:
            return {page for piece in (*self._waiting, *self._begun) for page in piece.slots}

    def start(
        self,
        store: VerifyingStore,
        pages: Pages,
        slots: npt.NDArray[np.integer],
        priority: Priority,
        on_read_end: ReadEnd,
    ) -> int:
        """Begin a load. Arguments, result and errors are those of `Pager.load`."""
        runs = coalesce(pages.tolist(), store.span, self._arena.page_bytes)
        slot_of, after, load = dict(zip(pages.tolist(), slots.tolist(), strict=True)), self._arena.reads(), object()
        with self._lock:
            if self._closed:
                raise engine_closed()
            self._start_thread()
            for group in group_runs(runs, self._arena.page_bytes):
                some = {page: slot_of[page] for run in group for page in range(run.first, run.first + run.count)}
                piece = _Piece(priority, next(self._numbers), load, store, some, after, on_read_end, len(some))
                heapq.heappush(self._waiting, piece)
        self._begin_some(load)
        return len(runs)

    def cancel(self, but: Collection[int]) -> list[int]:
        """Take back what has no stage, except pieces with pages ``but``. Returns what won't come."""
        gone = self._drop(lambda piece: not any(page in but for page in piece.slots))
        return [page for piece in gone for page in piece.slots]

    def stop(self) -> None:
        """Begin nothing any more, and tell of what has no stage."""
        with self._lock:
            self._closed = True
            dropped, self._waiting = self._waiting, []
            if not self._begun:
                self._came.put(None)
        for piece in dropped:
            piece.end(closed_while_loading())

    def join(self, seconds: float) -> bool:
        """Wait until what had been begun has ended. False if something hangs."""
        thread = self._thread
        if thread is None or thread is threading.current_thread():
            return True
        thread.join(seconds)
        return not thread.is_alive()

    def _start_thread(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._place, name="weightpager-staging", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the process may have no more
            raise no_thread() from error
        self._thread = thread

    def _begin_some(self, new: object = None) -> None:
        """Begin to read what there is a stage for.

        Raises:
            StoreError, EngineClosedError: a piece of the load ``new`` can't be read, and what had not begun of it is
                dropped. Whoever waits for another load is told.
        """
        while True:
            with self._lock:
                stage = self._arena.stage() if self._waiting else None
                if stage is None:
                    return
                piece = heapq.heappop(self._waiting)
                piece.stage = stage
                self._begun.append(piece)
            pages = np.array(list(piece.slots), np.int64)
            rows = PageBuffer(stage.rows[: len(pages)])
            read = PageLoad(
                piece.store, rows, pages, np.arange(len(pages)), piece.priority, self._teller(piece), cancellable=False
            )
            try:
                self._read(read)
            except BaseException as error:
                stage.give_back()
                if piece.load is new:
                    self._forget(piece)
                    self._drop(lambda other: other.load is new)
                    raise
                piece.end(error)
                self._forget(piece)

    def _teller(self, piece: _Piece) -> ReadEnd:
        def on_read_end(pages: Collection[int], error: BaseException | None) -> None:
            with self._lock:
                piece.left -= len(pages)
                piece.error = piece.error or error
                whole = not piece.left
            if whole:
                self._came.put(piece)

        return on_read_end

    def _place(self) -> None:
        while (piece := self._came.get()) is not None:
            assert piece.stage is not None
            if piece.error is None:
                try:
                    piece.stage.place(piece.slots, piece.after)
                except BaseException as error:  # noqa: BLE001 - whoever waits for the pages raises it
                    piece.error = error
            piece.stage.give_back()
            piece.end(piece.error)
            self._forget(piece)
            del piece  # else this thread keeps the last load's store and callbacks alive while it waits
            self._begin_some()

    def _forget(self, piece: _Piece) -> None:
        with self._lock:
            self._begun.remove(piece)
            if self._closed and not self._begun:
                self._came.put(None)

    def _drop(self, which: Callable[[_Piece], bool]) -> list[_Piece]:
        """Take pieces out of those that wait. Returns them."""
        gone: list[_Piece] = []
        stay: list[_Piece] = []
        with self._lock:
            for piece in self._waiting:
                (gone if which(piece) else stay).append(piece)
            self._waiting = stay
            heapq.heapify(self._waiting)
        return gone
