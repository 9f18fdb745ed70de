"""Reads of files straight into host memory, made and checked without Python between them.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from itertools import count

import numpy as np

import weightpager.kernels._native as _native
from weightpager.runtime.paging.load import (
    JOIN_SECONDS,
    Failure,
    PageLoad,
    closed_while_loading,
    engine_closed,
    no_thread,
    read_error,
)
from weightpager.store import most_pages
from weightpager.store.read_plan import BYTES_IN_FLIGHT

_GROUP_MICROSECONDS = 500
"""How long pages wait for others to be told of together, where more of their load are on their way."""

_hanging: list[object] = []
"""What reads that never ended may still write to."""


@dataclass
class _Progress:
    """What the thread that drives a queue tells its owner, which it doesn't know.

    Attributes:
        reads_ended: how many reads have ended, well or not.
    """

    reads_ended: int = 0


class NativeReads:
    """Implements `Reads`. One thread gives reads to the kernel by io_uring, or where that is refused to threads.

    The queue hashes each page as it comes, and tells of pages in groups: at once when a load is over.

    Args:
        reads: how many may be in flight.
        ring: whether to use io_uring where there is one.
    """

    def __init__(self, reads: int, *, ring: bool = True) -> None:
        self._queue = _native.ReadQueue(
            reads=reads, most_bytes=BYTES_IN_FLIGHT, group_microseconds=_GROUP_MICROSECONDS, ring=ring
        )
        self._loads: dict[int, PageLoad] = {}
        self._progress = _Progress()
        self._numbers = count()
        self._lock = threading.Lock()  # of starting the thread
        self._thread: threading.Thread | None = None

    @property
    def device(self) -> str:
        """Who makes the reads, "io_uring" or "threads"; empty before the first."""
        return self._queue.device

    @property
    def reads_ended(self) -> int:
        return self._progress.reads_ended

    @property
    def pages(self) -> set[int]:
        return set(_pages(self._queue.outstanding())) if self._loads else set()

    def start(self, load: PageLoad) -> int | None:
        slots = load.slots.astype(np.int64)
        sources = load.store.sources(load.pages)
        if sources is None:
            return None
        memory = load.into.address(slots)
        pages = np.ascontiguousarray(load.pages, np.int64)
        ids = load.store.index.ids[pages]
        self._start_thread()
        number = next(self._numbers)
        self._loads[number] = load  # first: it may be told of before `load` returns
        reads = self._queue.load(
            number,
            int(load.priority),
            load.cancellable,
            most_pages(load.into.page_bytes),
            len(pages),
            pages.ctypes.data,
            sources.descriptors.ctypes.data,
            sources.offsets.ctypes.data,
            slots.ctypes.data,
            ids.ctypes.data,
            memory,
            load.into.page_bytes,
        )
        if reads < 0:
            self._loads.pop(number, None)
            raise engine_closed()
        return reads

    def cancel(self, but: Collection[int]) -> list[int]:
        if not self._loads:
            return []
        kept = np.fromiter(but, np.int64, len(but))
        keep = np.zeros(int(kept.max(initial=-1)) + 1, bool)
        keep[kept] = True
        return _pages(self._queue.cancel(keep.ctypes.data, len(keep)))

    def withdraw(self, load: PageLoad) -> None:
        for number, begun in list(self._loads.items()):
            if begun is load:
                self._queue.withdraw(number)

    def close(self) -> bool:
        for number, pages, *_ in self._queue.close():
            self._loads[number].end(_pages(pages), closed_while_loading())
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():  # the garbage collector may close it, in any thread
            return True
        thread.join(JOIN_SECONDS)
        if not thread.is_alive():
            self._loads.clear()
            return True
        _abandon(os.getpid(), self._queue, thread)
        _hanging.append((self._queue, self._loads))
        return False

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is None:
                # A daemon: a read that hangs must not keep the interpreter from ending.
                self._thread = threading.Thread(
                    target=_drive,
                    args=(self._queue, self._loads, self._progress),
                    name="weightpager-pager",
                    daemon=True,
                )
                try:
                    self._thread.start()
                except RuntimeError as error:  # the process may have no more
                    self._thread = None
                    raise no_thread() from error
                # A daemon that is in native code when the interpreter ends would end the process by force.
                weakref.finalize(self, _abandon, os.getpid(), self._queue, self._thread)


def _drive(queue: _native.ReadQueue, loads: dict[int, PageLoad], progress: _Progress) -> None:
    """Carry out the loads of a queue until it is closed. It doesn't know its owner, which may go meanwhile."""
    while (report := queue.drive()) is not None:
        for number, packed, failure, error, corrupt in report[0]:
            load, pages = loads[number], _pages(packed)
            if failure not in (Failure.STORAGE, Failure.END_OF_FILE, Failure.NO_THREAD):
                load.store.count(len(pages) * load.into.page_bytes)
            progress.reads_ended += 1
            load.end(pages, read_error(failure, error, corrupt if failure == Failure.CORRUPT else pages[0]))
            del load
        for number in report[1]:
            loads.pop(number, None)
        del report


def _pages(packed: bytes) -> list[int]:
    pages: list[int] = np.frombuffer(packed, np.int64).tolist()
    return pages


def _abandon(process: int, queue: _native.ReadQueue, thread: threading.Thread) -> None:
    """End the thread that drives a queue, whatever hangs. Does nothing in a process that was forked."""
    if os.getpid() == process:
        queue.close()
        queue.abandon()
        if thread is not threading.current_thread():
            thread.join(JOIN_SECONDS)
