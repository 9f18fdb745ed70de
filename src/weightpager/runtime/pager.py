"""Carries out load plans: the only place that reads pages, and the only threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from weightpager.store import PageStore, Run, coalesce


@dataclass(frozen=True)
class LoadStats:
    """What loading cost: reads issued, bytes in them, seconds until the last was checked."""

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0

    def __add__(self, other: LoadStats) -> LoadStats:
        return LoadStats(self.reads + other.reads, self.bytes + other.bytes, self.seconds + other.seconds)


class Pager:
    """Loads pages into slots and waits for them.

    Args:
        store: where pages come from; it checks them.
        slot: gives a slot's bytes.
        page_bytes: bytes of a page.
        threads: reads in flight; storage reaches its bandwidth only with several.
    """

    def __init__(self, store: PageStore, slot: Callable[[int], memoryview], page_bytes: int, threads: int) -> None:
        self._store = store
        self._slot = slot
        self._page_bytes = page_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="weightpager-pager")

    def load(self, slots: Mapping[int, int], loaded: Callable[[int], None]) -> LoadStats:
        """Load pages and return when all reads have ended, well or not.

        Args:
            slots: page index → slot to fill, in the order in which pages are wanted.
            loaded: called in this thread for each page whose bytes are in place and checked.

        Raises:
            StoreError, PageCorruptError: the first read that failed; pages of other reads have been reported.
        """
        start = time.perf_counter()
        runs = coalesce(list(slots), self._store.span, self._page_bytes)
        failure = None
        for run, read in zip(runs, self._read_all(runs, slots), strict=True):
            error = read.exception()
            if error is None:
                for page in range(run.first, run.first + run.count):
                    loaded(page)
            failure = failure or error
        if failure is not None:
            raise failure
        return LoadStats(len(runs), len(slots) * self._page_bytes, time.perf_counter() - start)

    def close(self) -> None:
        """Wait for reads in flight, end the threads, close the store."""
        self._pool.shutdown(wait=True)
        self._store.close()

    def _read(self, run: Run, slots: Mapping[int, int]) -> None:
        self._store.read(run.first, [self._slot(slots[run.first + i]) for i in range(run.count)])

    def _read_all(self, runs: list[Run], slots: Mapping[int, int]) -> list[Future[None]]:
        """Read and wait until no read is under way, whatever happens: a late one would write into another's slot."""
        reads: list[Future[None]] = []
        try:
            for run in runs:
                # One by one: what has been submitted must be known when the next submission fails.
                reads.append(self._pool.submit(self._read, run, slots))  # noqa: PERF401
            wait(reads)
        except BaseException:
            for read in reads:
                read.cancel()
            _wait_out(reads)
            raise
        return reads


def _wait_out(reads: list[Future[None]]) -> None:
    """Wait, however often Ctrl-C is pressed."""
    while True:
        try:
            wait(reads)
        except KeyboardInterrupt:
            continue
        return
