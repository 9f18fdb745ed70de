"""What a switch between two tasks would load: pure, from the bundle's page index alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weightpager.bundle import Bundle
from weightpager.store.read_plan import StorageModel, coalesce


@dataclass(frozen=True)
class SwitchCost:
    """A planned switch. ``from_task`` is None for a start with an empty arena.

    Attributes:
        pages: the differential set's size.
        bytes: of those pages.
        reads: that load them.
        seconds: predicted by the storage model.
        peak_pages: pages in memory while both tasks are whole.
    """

    from_task: str | None
    to_task: str
    pages: int
    bytes: int
    reads: int
    seconds: float
    peak_pages: int


def switch_cost(bundle: Bundle, from_task: str | None, to_task: str, storage: StorageModel) -> SwitchCost:
    """The cost of switching when just ``from_task``'s pages are resident.

    Raises:
        UnknownTaskError: the bundle has no such task.
    """
    need = bundle.pages_of(to_task)
    have = need[:0] if from_task is None else bundle.pages_of(from_task)
    missing = np.setdiff1d(need, have, assume_unique=True)
    reads = len(coalesce(missing.tolist(), span_of(bundle), bundle.page_bytes))
    count = len(missing) * bundle.page_bytes
    return SwitchCost(
        from_task, to_task, len(missing), count, reads, storage.seconds(reads, count), len(np.union1d(need, have))
    )


def all_switches(bundle: Bundle, storage: StorageModel) -> list[SwitchCost]:
    """The cost of every ordered pair of different tasks."""
    return [switch_cost(bundle, a, b, storage) for a in bundle.tasks for b in bundle.tasks if a != b]


def span_of(bundle: Bundle) -> Callable[[int], int]:
    """How many pages a read from a page on can cover: those to the end of its file."""
    ends = np.cumsum(bundle.manifest.page_files)

    def span(first: int) -> int:
        return int(ends[np.searchsorted(ends, first, side="right")]) - first

    return span
