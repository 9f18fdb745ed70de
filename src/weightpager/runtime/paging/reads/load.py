"""Pages that are to be loaded, and who brings them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.runtime.memory.page_arena import StageSource
from weightpager.runtime.planning.plans import Pages
from weightpager.store import VerifyingStore

_log = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
"""How long closing waits for a read that hangs."""


class Priority(IntEnum):
    """Whose reads go first. What is being read already is finished."""

    REAL_TIME = 0
    ON_DEMAND = 1
    PREFETCH = 2


@dataclass(frozen=True, eq=False)
class Load:
    """Pages on their way into slots.

    Attributes:
        store: where the pages come from; it checks them.
        into: the memory whose slots they are.
        pages: int64 [N], ascending.
        slots: [N], the slot of each. It belongs to its read until that has ended.
        priority: who may overtake whom.
        on_read_end: called in a thread of the pager with pages that have come, or with those of a read that failed and
            why. Pages that came are in place and checked. Should it raise, it is called again with what it raised.
        cancellable: whether `Reads.cancel` may take back what hasn't begun, as of pages for the arena; else only
            `Reads.withdraw` does.
    """

    store: VerifyingStore
    into: StageSource
    pages: Pages
    slots: npt.NDArray[np.integer]
    priority: Priority
    on_read_end: Callable[[Collection[int], BaseException | None], None]
    cancellable: bool = True

    def end(self, pages: Collection[int], error: BaseException | None) -> None:
        """Tell of a read's end. What `on_read_end` raises reaches whoever waits, and never the thread that reads."""
        try:
            self.on_read_end(pages, error)
        except BaseException as raised:  # noqa: BLE001 - told to whoever waits
            _log.exception("the end of a read could not be told")
            try:
                self.on_read_end(pages, error or raised)
            except BaseException:  # noqa: BLE001 - whoever waits will say that nothing came
                _log.exception("nor that it could not")


class Reads(Protocol):
    """Carries loads out. Safe to use from several threads."""

    @property
    def reads_ended(self) -> int:
        """How many reads have ended until now, well or not."""

    @property
    def pages(self) -> set[int]:
        """Pages of cancellable loads that have not ended."""

    def start(self, load: Load) -> int | None:
        """Begin, as soon as what goes before it has begun. Returns the number of reads.

        None if it can't bring these pages, or not to there: then nothing has changed.

        Raises:
            EngineClosedError: it has been closed.
        """

    def cancel(self, but: Collection[int]) -> list[int]:
        """Take back cancellable reads that haven't begun, except those of pages ``but``. Returns what won't come."""

    def withdraw(self, load: Load) -> None:
        """Take back what has not begun of one load. Its pages aren't told."""

    def close(self) -> bool:
        """Drop what has not begun. Returns False if a read hangs and had to be left."""
