"""Errors of reads."""

from __future__ import annotations

import os
from enum import IntEnum

from weightpager.errors import EngineClosedError, PageCorruptError, StoreError, StoreTimeoutError, WeightpagerError


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
    """The error for whoever asks for pages after the engine was closed."""
    return EngineClosedError("the engine has been closed; open the bundle again")


def closed_while_loading() -> EngineClosedError:
    """The error for whoever waits for pages while the engine is closed."""
    return EngineClosedError("the engine was closed while pages were being loaded")


def no_thread() -> StoreError:
    """The error where no thread can be started that would read."""
    return StoreError(
        "cannot read pages: expected a thread to read them with, but none could be started; "
        "raise the limit of threads (ulimit -u, or that of the container or service)"
    )


def storage_hangs(what: str) -> StoreTimeoutError:
    """The error for storage that was given up.

    Args:
        what: says what it hasn't done, and for how long.
    """
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
    """The error for a failure of reads that a thread makes itself.

    Args:
        failure: a `Failure`, as the native module says it; not `Failure.NONE`.
        number: the number of the storage's error.
        page: the read's first, or the one that isn't what it should be.
        read_timeout: seconds without any page after which storage was given up.
        what: was read meanwhile, for the message.
    """
    if failure == Failure.HANGS:
        return storage_hangs(f"storage has delivered nothing for {read_timeout:g} s while {what} were read")
    if failure == Failure.CLOSED:
        return engine_closed()
    error = read_error(failure, number, page)
    assert error is not None, failure
    return error
