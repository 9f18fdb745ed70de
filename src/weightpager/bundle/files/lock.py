"""Locks on files and directories. The kernel gives a lock back however its holder ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from weightpager.errors import WeightpagerError


@contextmanager
def locked(
    path: Path,
    flags: int,
    taken: WeightpagerError,
    errors: Callable[[], AbstractContextManager[None]],
    *,
    required: bool = True,
    mode: int = 0o600,
) -> Iterator[int]:
    """Open a file or directory and keep other processes from locking it meanwhile; its descriptor.

    Args:
        path: of the file or directory.
        flags: as `os.open` takes them.
        taken: raised if another process holds the lock.
        errors: turns an `OSError` of the storage into one of ours.
        required: refuse a file system without locks, too. Else the body runs there without one.
        mode: of a file that is created.
    """
    with errors():
        descriptor = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        with errors():
            if not lock(descriptor, required=required):
                raise taken
        yield descriptor
    finally:
        unlock(descriptor)
        os.close(descriptor)


def unlock(descriptor: int) -> None:
    """Give a lock back: closing isn't enough where a process that was forked meanwhile has the descriptor too."""
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def lock(descriptor: int, *, required: bool = True) -> bool:
    """Lock an open file or directory until it is closed; False if another process holds it.

    Raises:
        OSError: the lock is required, and the file system has none.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if required:
            raise
    return True
