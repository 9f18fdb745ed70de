"""Pages that are to be loaded, and who brings them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from weightpager.errors import EngineClosedError, PageCorruptError, StoreError, StoreTimeoutError, WeightpagerError
from weightpager.runtime.memory.page_arena import HostMemory
from weightpager.runtime.planning.pages import Pages
from weightpager.store import VerifyingStore

_log = logging.getLogger(__name__)

JOIN_SECONDS = 5.0
"""How long closing waits for a read that hangs."""


class Priority(IntEnum):
    """Whose reads go first. What is being read already is finished."""

    REAL_TIME = 0
    ON_DEMAND = 1
    PREFETCH = 2


ReadEnd: TypeAlias = Callable[[Collection[int], BaseException | None], None]
"""Called in a thread of the pager with pages that have come, or with those of a read that failed and why. Pages that
came are in place and checked. Should it raise, it is called again with what it raised."""


@dataclass(frozen=True, eq=False)
class PageLoad:
    """Pages on their way into slots.

    Attributes:
        store: where the pages come from; it checks them.
        into: the memory whose slots they are.
        pages: int64 [N], ascending.
        slots: [N], the slot of each. It belongs to its read until that has ended.
        priority: who may overtake whom.
        on_read_end: is told of each read.
        cancellable: whether `Reads.cancel` may take back what hasn't begun, as of pages for the arena; else only
            `Reads.withdraw` does.
    """

    store: VerifyingStore
    into: HostMemory
    pages: Pages
    slots: npt.NDArray[np.integer]
    priority: Priority
    on_read_end: ReadEnd
    cancellable: bool = True

    def end(self, pages: Collection[int], error: BaseException | None) -> None:
        tell(self.on_read_end, pages, error)


def tell(on_read_end: ReadEnd, pages: Collection[int], error: BaseException | None) -> None:
    """Tell of a read's end. What that raises reaches whoever waits, and never the thread that reads."""
    try:
        on_read_end(pages, error)
    except BaseException as raised:  # noqa: BLE001 - told to whoever waits
        _log.exception("the end of a read could not be told")
        try:
            on_read_end(pages, error or raised)
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

    def start(self, load: PageLoad) -> int | None:
        """Begin, as soon as what goes before it has begun. Returns the number of reads.

        None if it can't bring these pages: then nothing has changed.

        Raises:
            EngineClosedError: it has been closed.
        """

    def cancel(self, but: Collection[int]) -> list[int]:
        """Take back cancellable reads that haven't begun, except those of pages ``but``. Returns what won't come."""

    def withdraw(self, load: PageLoad) -> None:
        """Take back what has not begun of one load. Its pages aren't told."""

    def close(self) -> bool:
        """Drop what has not begun. Returns False if a read hangs and had to be left."""


class Failure(IntEnum):
    """Why a read failed, by the numbers of ``Failure`` in ``csrc/load/read.hpp``.

    `HANGS` and `CLOSED` are of reads that a thread makes itself.
    """

    NONE = 0
    STORAGE = 1
    END_OF_FILE = 2
    CORRUPT = 3
    HANGS = 4
    CLOSED = 5
    NO_THREAD = 6


def engine_closed() -> EngineClosedError:
    return EngineClosedError("the engine has been closed; open the bundle again")


def closed_while_loading() -> EngineClosedError:
    return EngineClosedError("the engine was closed while pages were being loaded")


def no_thread() -> StoreError:
    return StoreError(
        "cannot read pages: expected a thread to read them with, but none could be started; "
        "raise the limit of threads (ulimit -u, or that of the container or service)"
    )


def storage_hangs(what: str) -> StoreTimeoutError:
    """The error for storage that was given up."""
    return StoreTimeoutError(f"{what}; check the device, or raise read_timeout if it is only slow")


def read_error(failure: int, number: int, page: int) -> WeightpagerError | None:
    """The error for a failure that the native module reports; None where there was none.

    Args:
        failure: a `Failure`, as the native module says it.
        number: the number of the storage's error.
        page: the read's first, or the one that isn't what it should be.
    """
    if failure == Failure.STORAGE:
        return StoreError(f"cannot read page {page}: {os.strerror(number)}")
    if failure == Failure.NO_THREAD:
        return no_thread()
    if failure == Failure.END_OF_FILE:
        return StoreError(f"cannot read page {page}: the file ends too early")
    return PageCorruptError(page, "on load") if failure == Failure.CORRUPT else None


def own_read_error(failure: int, number: int, page: int, read_timeout: float, what: str) -> WeightpagerError:
    """The error for a failure of reads that a thread makes itself."""
    if failure == Failure.HANGS:
        return storage_hangs(f"storage has delivered nothing for {read_timeout:g} s while {what} were read")
    if failure == Failure.CLOSED:
        return engine_closed()
    error = read_error(failure, number, page)
    assert error is not None, failure
    return error
