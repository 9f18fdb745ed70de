"""A file that one process appends to, and sometimes replaces in one step."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from weightpager.bundle.files.new_directory import lock, sync, unlock
from weightpager.bundle.files.regular_file import open_regular
from weightpager.errors import ConfigError


class AppendedFile:
    """Open for appending, and locked, until it is closed or its process ends.

    The lock lies beside the file, not on it: the file itself may be replaced.

    Args:
        path: the file; it and ``<path>.lock`` are created, readable for their owner only.

    Raises:
        ConfigError: the file cannot be opened, or another engine has it open.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = _lock(path)
        try:
            self._file = _open(path)
        except ConfigError:
            os.close(self._lock)
            raise

    @property
    def size(self) -> int:
        return os.fstat(self._file).st_size

    def tail(self, most: int) -> bytes:
        """The last bytes, so many at most. Raises `OSError` if it can't be read."""
        with open_regular(self.path) as file:
            file.seek(max(0, self.size - most))
            return file.read(most)

    def append(self, content: bytes) -> None:
        """Write to the end of the file. Raises `OSError` if nothing, or only a part, could be written."""
        written = os.write(self._file, content)
        if written < len(content):
            raise OSError(f"only {written} of {len(content)} bytes were written")

    def sync(self) -> None:
        """Wait until the disk has the content. Raises `OSError` if the disk may not have it."""
        os.fdatasync(self._file)

    def replace(self, content: bytes) -> None:
        """Put a new file with this content in the old one's place, on the disk. Nobody ever sees a part of it.

        Raises:
            OSError: the old file is still in its place, or the new one is and a power cut may bring the old one back.
        """
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        fresh = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(os.dup(fresh), "wb") as file:
                file.write(content)
            os.fsync(fresh)
            temporary.replace(self.path)
        except BaseException:
            os.close(fresh)
            with suppress(OSError):
                temporary.unlink()
            raise
        os.close(self._file)
        self._file = fresh
        sync(self.path.parent)

    def close(self) -> None:
        """Let others use it. To be called once."""
        os.close(self._file)
        unlock(self._lock)
        os.close(self._lock)


def _open(path: Path) -> int:
    # Without O_NONBLOCK opening a FIFO would wait for a reader.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error


def _lock(path: Path) -> int:
    descriptor = _open(path.with_name(path.name + ".lock"))
    try:
        if lock(descriptor):
            return descriptor
    except OSError as error:
        os.close(descriptor)
        raise _unusable(path, error) from error
    os.close(descriptor)
    raise ConfigError(
        f"{path}: expected a file that nobody else has open, but another engine has it; "
        "give every engine a history file of its own"
    )


def _unusable(path: Path, error: OSError) -> ConfigError:
    why = error.strerror or error
    return ConfigError(f"{path}: expected a file that can be written, in a directory that exists, got: {why}")
