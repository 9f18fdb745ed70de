"""The storage under a path: what it is, whether reads can go past the page cache, and how fast they are."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from weightpager.config import EngineConfig, format_enough, format_room
from weightpager.doctor.machine import Bandwidth, direct_read_bandwidth, memory_read_bandwidth
from weightpager.errors import ConfigError, StoreError
from weightpager.kernels.choice import NATIVE
from weightpager.machine.memory import Memory
from weightpager.machine.storage import mount_of

_PIECE = 8 << 20
_MOST = 128 << 20
_WRITE_SECONDS = 1.0
"""Time for writing, so that a slow card gets a small file; reading, which is repeated, takes no longer."""

_FREE_SHARE = 4  # the file takes at most one part in so many of the free space
_LONG, _PAGE = 1 << 20, 64 << 10  # bytes of a read, in sequence and as pages are read
_SHORT, _SHORT_READS = 4096, 256  # bytes of a read whose time is mostly that of any read, and how many there are
_REPEATS = 3

_PREFIX = ".weightpager-doctor-"
_LEFT_SECONDS = 3600.0
"""Older files were left by runs that were killed. Younger ones may be of a run that goes on, which takes seconds."""

Step = Callable[[], None]


@dataclass(frozen=True)
class Storage:
    """What was found of the storage under a directory; None where unknown or not measured.

    Attributes:
        source: what is mounted there, a device for a disk.
        direct: whether O_DIRECT works.
        sequential: long direct reads by one thread.
        pages: direct reads of 64 KiB by as many threads as an engine reads with.
        short: direct reads of 4 KiB by one thread, one after the other.
        problem: why something was not measured; else empty.
    """

    directory: Path
    kind: str | None
    source: str | None
    direct: bool | None = None
    sequential: Bandwidth | None = None
    pages: Bandwidth | None = None
    short: Bandwidth | None = None
    problem: str = ""

    @property
    def seconds_per_read(self) -> float | None:
        """What a short read takes; None if not measured."""
        return None if self.short is None else self.short.block_bytes / self.short.median


STEPS = 4
"""How often `examine_storage` reports a step: written, read in sequence, as pages, and by short reads."""


def directory_of(path: Path) -> Path:
    """The directory to examine for a path: itself, or the one that a file lies in. Raises `ConfigError` without one."""
    try:
        facts = path.stat()
    except OSError as error:
        asked = f"path: expected a directory or a file on the storage to examine, got {path}"
        raise ConfigError(f"{asked}: {error.strerror}") from error
    return path if stat.S_ISDIR(facts.st_mode) else path.parent


def examine_storage(directory: Path, step: Step = lambda: None) -> Storage:
    """Write a temporary file of at most 128 MiB, for about a second, read it and remove it.

    Files that killed runs left there are removed, too. Where nothing can be measured, `Storage.problem` says why;
    nothing is raised for it. ``step`` is called after each of `STEPS` steps; fewer where something can't be measured.
    """
    storage = Storage(directory, *_mounted(directory))
    try:
        _remove_leftovers(directory)
        free = shutil.disk_usage(directory).free
        size = probe_bytes(free)
        if size == 0:
            needed = format_enough(_FREE_SHARE * _PIECE)
            return replace(storage, problem=f"too little space: expected {needed} free, got {format_room(free)}")
        with tempfile.NamedTemporaryFile(prefix=_PREFIX, dir=directory) as file:
            written = _fill(file, size)
            step()
            return _measure(storage, Path(file.name), written, step)
    except OSError as error:
        return replace(storage, problem=f"a file can't be written there: {error.strerror}")


def probe_bytes(free: int) -> int:
    """Bytes of the file to write where so many are free; 0 if that is too little."""
    return min(_MOST, free // _FREE_SHARE // _PIECE * _PIECE)


def _mounted(directory: Path) -> tuple[str | None, str | None]:
    try:
        mount = mount_of(directory)
    except (OSError, LookupError):  # a system without /proc, or a mount out of sight
        return None, None
    return mount.kind, mount.source


def _remove_leftovers(directory: Path) -> None:
    for file in directory.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another user's, or gone meanwhile
            if time.time() - file.lstat().st_mtime > _LEFT_SECONDS:
                file.unlink()


def _fill(file: IO[bytes], most: int) -> int:
    """Write pieces of noise, which no file system can compress, until the time or the size is up; bytes written."""
    end = time.monotonic() + _WRITE_SECONDS
    written = 0
    while written < most and (written == 0 or time.monotonic() < end):
        file.write(os.urandom(_PIECE))
        file.flush()
        os.fsync(file.fileno())
        written += _PIECE
    return written


def _measure(found: Storage, file: Path, size: int, step: Step) -> Storage:
    """What was found, with the bandwidths of a file of that many bytes."""
    if not hasattr(os, "O_DIRECT"):
        return replace(found, direct=False, problem="this system has no O_DIRECT")
    try:
        sequential = direct_read_bandwidth(file, size, _LONG, repeats=_REPEATS)
        step()
        pages = direct_read_bandwidth(file, size, _PAGE, EngineConfig().io_threads, repeats=_REPEATS)
        step()
        short = direct_read_bandwidth(file, min(size, _SHORT * _SHORT_READS), _SHORT, repeats=_REPEATS)
        step()
    except StoreError as error:
        return replace(found, direct=False, problem=_unnamed(str(error), file))
    except ConfigError as error:  # a file system that doesn't say what of a file is on disk
        return replace(found, problem=_unnamed(str(error), file))
    except OSError as error:
        return replace(found, problem=f"reads can't be measured there: {error.strerror}")
    sequential, pages, short = (replace(read, doubt=_unnamed(read.doubt, file)) for read in (sequential, pages, short))
    return replace(found, direct=True, sequential=sequential, pages=pages, short=short)


def _unnamed(text: str, file: Path) -> str:
    """A message without the temporary file's name, which means nothing to the user."""
    return text.removeprefix(f"{file}: ").replace(str(file), "a file there")


_MOST_READ = 256 << 20  # bytes that are read; no cache of a processor that this runs on holds a large part of them
_LEAST = 1 << 20


def read_bytes(memory: Memory) -> int:
    """Bytes to measure with: enough to be out of cache, and no more than an eighth of what is usable."""
    usable = memory.usable_bytes
    return _MOST_READ if usable is None else max(_LEAST, min(_MOST_READ, usable // 8))


def kernel_read_bandwidth(total_bytes: int, threads: int, *, repeats: int = 5) -> Bandwidth:
    """How fast the native module reads memory that is in no cache; numpy, and a doubt, where there is no such module.

    One run more, before all others, isn't counted.
    """
    if not NATIVE:
        measured = memory_read_bandwidth(total_bytes, threads, repeats=repeats)
        return replace(measured, doubt="read by numpy, which may be slower than memory is")
    seconds = _native_seconds(np.ones(total_bytes, np.uint8), threads, repeats)
    return Bandwidth(total_bytes, total_bytes // threads, threads, seconds)


def _native_seconds(content: npt.NDArray[np.uint8], threads: int, repeats: int) -> tuple[float, ...]:
    from weightpager.kernels.native import read_memory  # only where the native module has been built

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        read_memory(content, threads)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds[1:])
