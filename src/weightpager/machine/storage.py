"""Storage that a file lies on: its mount, its kind, and reads past the page cache."""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

from weightpager.interrupts import uninterrupted


@dataclass(frozen=True)
class Mount:
    """One line of ``/proc/self/mountinfo``.

    Attributes:
        number: the mount's id, as in ``/proc/self/fdinfo``.
        root: the directory of the file system that is mounted.
        point: where it is mounted.
        kind: the file system's type.
        source: what is mounted, a device's path for file systems on disks.
        options: of the file system, not of the mount.
    """

    number: int
    root: str
    point: Path
    kind: str
    source: str
    options: tuple[str, ...]

    def below(self, root: Path) -> Mount:
        """The same, with a point that is found below another root directory."""
        return replace(self, point=root / os.fspath(self.point).lstrip("/"))


def mounts(table: str | None = None) -> list[Mount]:
    """The mounts in the text of a ``mountinfo`` file, less lines that aren't such; without one, those of this process.

    Raises:
        OSError: a system without ``/proc``, which wasn't given a text.
    """
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()) if table is None else table
    parsed = map(_parse_mount, text.split("\n"))  # other separators may be part of a path
    return [mount for mount in parsed if mount is not None]


def mount_of(path: str | os.PathLike[str]) -> Mount:
    """The mount that a path lies on. Raises `LookupError` if it lies on none that this process sees."""
    number = _mount_number(path)
    for mount in mounts():
        if mount.number == number:
            return mount
    raise LookupError(f"{os.fspath(path)}: no mount has the number {number}")


def _mount_number(path: str | os.PathLike[str]) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    finally:
        os.close(descriptor)
    return int(fields["mnt_id"])


def _parse_mount(line: str) -> Mount | None:
    """``36 35 98:0 /root /point rw shared:1 - ext4 /dev/sda1 rw,errors=continue``; spaces are written as octal."""
    ours, _, theirs = line.partition(" - ")
    try:
        number, _, _, root, point, *_ = ours.split(" ")
        kind, source, options = theirs.split(" ", 2)
    except ValueError:
        return None
    if not number.isdecimal():
        return None
    return Mount(
        int(number), _unescape(root), Path(_unescape(point)), kind, _unescape(source), tuple(options.split(","))
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def free_bytes(path: Path) -> int | None:
    """Bytes that this user may still write where ``path`` is or will be; None if the system doesn't tell."""
    try:
        facts = os.statvfs(_existing(path))
    except OSError:
        return None
    return facts.f_bavail * facts.f_frsize


def file_system(path: Path) -> int | None:
    """A number that paths share which are, or will be, on one file system; None if the system doesn't tell."""
    try:
        return _existing(path).stat().st_dev
    except OSError:
        return None


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), Path("/"))


_NORESERVE = 0x4000  # which Python doesn't name before 3.11

ALIGNMENT = 4096
"""Direct reads want offsets, lengths and addresses on this boundary."""

MOST_VIEWS = 1024
"""Linux takes at most so many buffers in one preadv."""


class DirectFile:
    """An open file; several threads may read at once. ``direct`` reads bypass the page cache (O_DIRECT)."""

    @uninterrupted
    def __init__(self, path: Path, *, direct: bool = True, cached: bool = True) -> None:
        """``cached`` reads through the page cache where the file system has no direct reads.

        Raises:
            OSError: it can't be opened; EINVAL where it could only be read through the page cache.
        """
        self.direct = direct
        flags = os.O_RDONLY | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags | (os.O_DIRECT if direct else 0))
        except OSError as error:
            if not (direct and cached and error.errno == errno.EINVAL):
                raise
            descriptor, self.direct = os.open(path, flags), False
        self._file = FileIO(descriptor)  # closes it if nobody else does
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def read(self, into: Sequence[memoryview], offset: int, wanted: int | None = None) -> int:
        """Fill buffers, one after the other, from an offset on; bytes read, fewer than wanted where the file ends.

        Args:
            into: at most `MOST_VIEWS`; for direct reads aligned, as is the offset.
            offset: in the file.
            wanted: bytes to read at least; None for all that the buffers hold. The last buffer may be longer, since a
                direct read of a file's end is for a whole multiple of `ALIGNMENT`.

        Raises:
            OSError: the storage failed.
        """
        wanted, done = sum(map(len, into)) if wanted is None else wanted, 0
        while done < wanted:
            count = os.preadv(self.descriptor, into, offset + done)
            if count == 0:
                break
            done += count
            if done < wanted:  # storage may return less than was asked for
                into = _rest(into, count)
        return done

    def close(self) -> None:
        self._file.close()


def aligned_memory(count: int) -> mmap.mmap:
    """Page-aligned memory for so many bytes; taken when it is first written to."""
    return mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def address_space(count: int) -> mmap.mmap:
    """As `aligned_memory`, and no promise of the machine's that it has so much. Raises `OSError` if it refuses that."""
    return mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)


def _rest(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left to fill after ``count`` bytes."""
    for number, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[number + 1 :]]
        count -= len(view)
    return []
