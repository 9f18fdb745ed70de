"""Which reads load a set of pages, and how long that will take: pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_READ_BYTES = 1 << 20
"""Reads longer than this gain nothing and start later what waits behind them."""

BYTES_IN_FLIGHT = 4 << 20
"""While so many are in flight no other read begins, so that an urgent read waits for little more than these."""

GROUP_BYTES = 1 << 16
"""Shorter reads are grouped until they have so many bytes together."""


@dataclass(frozen=True)
class PageRun:
    """``count`` pages in a row, loaded by one read."""

    first: int
    count: int


@dataclass(frozen=True)
class StorageModel:
    """What a read costs: a fixed part, and one that grows with its bytes.

    The defaults are a modest NVMe or UFS device; `weightpager plan --storage --read-latency` takes the user's own.
    """

    bytes_per_second: float = 1.0e9
    seconds_per_read: float = 100e-6

    def seconds(self, reads: int, count: int) -> float:
        """Time for ``reads`` reads of ``count`` bytes altogether."""
        return reads * self.seconds_per_read + count / self.bytes_per_second


def most_pages(page_bytes: int) -> int:
    """Pages that one read covers at most."""
    return max(1, MAX_READ_BYTES // page_bytes)


def read_count(pages: npt.NDArray[np.int64], page_bytes: int) -> int:
    """How many runs `coalesce` makes of ascending pages that all lie in one file."""
    _, lengths = _rows(pages)
    return int((-(-lengths // most_pages(page_bytes))).sum())


def coalesce(pages: Sequence[int], span: Callable[[int], int], page_bytes: int) -> list[PageRun]:
    """Join ascending page indices into runs that one read each can cover.

    Args:
        pages: ascending, each once.
        span: how many pages a read from a page on can cover at most (`PageStore.span`).
        page_bytes: bytes of a page.
    """
    most = most_pages(page_bytes)
    firsts, lengths = _rows(np.asarray(pages, np.int64))
    runs: list[PageRun] = []
    for first, left in zip(firsts.tolist(), lengths.tolist(), strict=True):
        end = first + left
        while first < end:
            runs.append(PageRun(first, min(end - first, most, max(1, span(first)))))
            first += runs[-1].count
    return runs


def _rows(pages: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where ascending pages that follow each other begin, and how many they are."""
    starts = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
    return pages[starts], np.diff(starts, append=len(pages))


def group_runs(runs: Sequence[PageRun], page_bytes: int) -> list[list[PageRun]]:
    """Group short runs, in order; one thread reads a group before it takes other work.

    Around reads there is work that threads of one interpreter do one after the other.
    """
    least, most = -(-GROUP_BYTES // page_bytes), most_pages(page_bytes)
    groups: list[list[PageRun]] = []
    pages = least
    for run in runs:
        if pages >= least or pages + run.count > most:
            groups.append([])
            pages = 0
        groups[-1].append(run)
        pages += run.count
    return groups
