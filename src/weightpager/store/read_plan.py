"""Which reads load a set of pages, and how long that will take: pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle

MAX_READ_BYTES = 1 << 20
"""Reads longer than this gain nothing and start later what waits behind them."""

BYTES_IN_FLIGHT = 4 << 20
"""While so many are in flight no other read begins, so that an urgent read waits for little more than these."""

GROUP_BYTES = 1 << 16
"""Shorter reads are grouped until they have so many bytes together."""


@dataclass(frozen=True)
class ReadRun:
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
    return max(1, MAX_READ_BYTES // page_bytes)


def read_count(pages: npt.NDArray[np.int64], page_bytes: int) -> int:
    """How many runs `coalesce` makes of ascending pages that all lie in one file."""
    _, lengths = _rows(pages)
    return int((-(-lengths // most_pages(page_bytes))).sum())


def coalesce(pages: Sequence[int], span: Callable[[int], int], page_bytes: int) -> list[ReadRun]:
    """Join ascending page indices into runs that one read each can cover.

    Args:
        pages: ascending, each once.
        span: how many pages a read from a page on can cover at most (`PageStore.span`).
        page_bytes: bytes of a page.
    """
    most = most_pages(page_bytes)
    firsts, lengths = _rows(np.asarray(pages, np.int64))
    runs: list[ReadRun] = []
    for first, left in zip(firsts.tolist(), lengths.tolist(), strict=True):
        end = first + left
        while first < end:
            runs.append(ReadRun(first, min(end - first, most, max(1, span(first)))))
            first += runs[-1].count
    return runs


def _rows(pages: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where ascending pages that follow each other begin, and how many they are."""
    starts = np.flatnonzero(np.diff(pages, prepend=-2) != 1)
    return pages[starts], np.diff(starts, append=len(pages))


def group_runs(runs: Sequence[ReadRun], page_bytes: int) -> list[list[ReadRun]]:
    """Group short runs, in order; one thread reads a group before it takes other work.

    Around reads there is work that threads of one interpreter do one after the other.
    """
    least, most = -(-GROUP_BYTES // page_bytes), most_pages(page_bytes)
    groups: list[list[ReadRun]] = []
    pages = least
    for run in runs:
        if pages >= least or pages + run.count > most:
            groups.append([])
            pages = 0
        groups[-1].append(run)
        pages += run.count
    return groups


SMALL_SWITCH_BYTES = 1 << 20
"""Missing pages that a switch on a CPU reads beside the arena, so that they need no commit phase."""


@dataclass(frozen=True)
class SwitchCost:
    """A planned switch. ``from_task`` is None for a start with an empty arena.

    Attributes:
        pages: the differential set's size.
        bytes: bytes of those pages.
        reads: how many reads load them.
        seconds: predicted by the storage model.
        most_seconds: the longest that the switch can take, whatever else is in memory, as long as no third task is in
            use. A page that is there already saves its own bytes, but may split one read into two.
        peak_pages: pages in memory while both tasks are whole.
    """

    from_task: str | None
    to_task: str
    pages: int
    bytes: int
    reads: int
    seconds: float
    most_seconds: float
    peak_pages: int


def switch_cost(
    bundle: Bundle, from_task: str | None, to_task: str, storage: StorageModel, slots: int | None = None
) -> SwitchCost:
    """The cost of switching when just ``from_task``'s pages are resident.

    Args:
        bundle: has both tasks.
        from_task: the task that is left; None for a start with an empty arena.
        to_task: the wanted task; it must fit.
        storage: what reads cost.
        slots: of the arena, None for enough. What has no room beside ``from_task`` is read once that is given up, but
            for a small switch.

    Raises:
        UnknownTaskError: the bundle has no such task.
    """
    need = bundle.pages_of(to_task)
    have = need[:0] if from_task is None else bundle.pages_of(from_task)
    missing = np.setdiff1d(need, have, assume_unique=True)
    room = len(missing) if slots is None else max(0, slots - len(have))
    count = len(missing) * bundle.page_bytes
    first = len(missing) if count <= SMALL_SWITCH_BYTES else room
    phases = missing[:first].tolist(), missing[first:].tolist()
    reads = sum(len(coalesce(phase, span_of(bundle), bundle.page_bytes)) for phase in phases)
    seconds, peak = storage.seconds(reads, count), len(np.union1d(need, have))
    most = seconds + _more_seconds(missing, room, bundle.page_bytes, storage)
    return SwitchCost(from_task, to_task, len(missing), count, reads, seconds, most, peak)


def all_switches(bundle: Bundle, storage: StorageModel) -> list[SwitchCost]:
    return [switch_cost(bundle, a, b, storage) for a in bundle.tasks for b in bundle.tasks if a != b]


def span_of(bundle: Bundle) -> Callable[[int], int]:
    """How many pages a read from a page on can cover: those to the end of its file."""
    ends = np.cumsum(bundle.manifest.page_files)

    def span(first: int) -> int:
        return int(ends[np.searchsorted(ends, first, side="right")]) - first

    return span


def _more_seconds(missing: npt.NDArray[np.int64], room: int, page_bytes: int, storage: StorageModel) -> float:
    """Seconds that pages which are already in memory can add: one inside a run of missing pages splits the run's read.

    Every second page of a row can do so, as far as there is room for them; and the place where the commit phase begins,
    inside of a read, may be another one.
    """
    rows = np.diff(np.flatnonzero(np.diff(missing, prepend=-2, append=-2) != 1))
    holes = min(room, int(((rows - 1) // 2).sum()))
    loss = max(0.0, storage.seconds(1, 0) - storage.seconds(0, page_bytes))
    return holes * loss + (storage.seconds(1, 0) if room < len(missing) else 0.0)
