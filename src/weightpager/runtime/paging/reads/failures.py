"""What failures of native reads are to Python."""

from __future__ import annotations

import os

from weightpager.errors import PageCorruptError, StoreError, StoreTimeoutError, WeightpagerError
from weightpager.runtime.paging.reads.load import closed

STORAGE, END_OF_FILE, CORRUPT, HANGS, CLOSED = 1, 2, 3, 4, 5
"""Why a read failed, as the native module says it; the last two are of reads that a thread makes itself."""


def read_error(failure: int, number: int, page: int) -> WeightpagerError | None:
    """What a read's failure is to Python; None where there was none.

    Args:
        failure: as the native module says it.
        number: of the storage's error.
        page: the read's first, or the one that isn't what it should be.
    """
    if failure == STORAGE:
        return StoreError(f"cannot read page {page}: {os.strerror(number)}")
    if failure == END_OF_FILE:
        return StoreError(f"cannot read page {page}: the file ends too early")
    return PageCorruptError(page, "on load") if failure == CORRUPT else None


def own_read_error(failure: int, number: int, page: int, patience: float, what: str) -> WeightpagerError | None:
    """As `read_error`, of reads that a thread makes itself.

    Args:
        failure: as the native module says it.
        number: of the storage's error.
        page: the read's first, or the one that isn't what it should be.
        patience: seconds without any page after which storage was given up.
        what: was read meanwhile, for the message.
    """
    if failure == HANGS:
        return StoreTimeoutError(
            f"storage has delivered nothing for {patience:g} s while {what} were read; "
            "check the device, or raise read_timeout if it is only slow"
        )
    return closed() if failure == CLOSED else read_error(failure, number, page)
