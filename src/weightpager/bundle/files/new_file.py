"""A file that appears whole or not at all: written beside its place, synced, and put there in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from weightpager.bundle.files.new_directory import sync


@contextmanager
def new_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write into, which takes its place at ``path`` when the body ends well; it may replace another one.

    One process at a time may write to a path. What a killed one has left, the next one removes. The umask takes from
    the mode. After an `OSError` what was at ``path`` is still there.
    """
    temporary = beside(path)
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def beside(path: Path) -> Path:
    """Where `new_file` writes what shall be at ``path``. No pattern for a suffix of ours matches it."""
    return path.with_name(f".{path.name}{UNFINISHED}")


UNFINISHED = ".unfinished"
"""The suffix of a file that isn't whole yet."""
