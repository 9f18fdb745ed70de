"""Proof that a measured read was cold: what the page cache holds of a file, before and after."""

from __future__ import annotations

import ctypes
import mmap
import os
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_PROVABLE = frozenset({"bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs"})
"""File systems on a block device of this machine that cache file contents in the page cache and nowhere else."""

_MEMORY = frozenset({"devtmpfs", "hugetlbfs", "ramfs", "rootfs", "tmpfs"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


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


@dataclass
class ColdProof:
    """What is known about the page cache around a measured read.

    A result must be shown with `cold` and, where that is False, with `reason`.

    Attributes:
        cold: True if nothing of the files was cached when the measured code started.
        reason: why it isn't proved; empty if it is.
        before_bytes: page cache that the files held just before the measured code.
        left_bytes: page cache that they held just after it, 0 for reads that bypass it; None until then.
    """

    cold: bool
    reason: str
    before_bytes: int
    left_bytes: int | None = None


def drop(path: str | os.PathLike[str]) -> None:
    """Write a file back and ask the kernel to forget its cached pages.

    It is a request: pages that somebody has mapped, and file systems that live in memory, stay. `resident_bytes` says
    what became of it.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)  # dirty pages are never dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def resident_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of page cache that a file holds: whole pages, so up to a page more than the file is long.

    Looking changes nothing. For a file that the caller neither owns nor may write, Linux claims that all is cached.
    """
    with _opened(path, os.O_RDONLY) as descriptor:
        length = os.fstat(descriptor).st_size
        if length == 0:
            return 0
        with mmap.mmap(descriptor, length, access=mmap.ACCESS_READ) as mapping:
            return _resident_pages(mapping) * mmap.PAGESIZE


@contextmanager
def cold_read(paths: Iterable[str | os.PathLike[str]]) -> Iterator[ColdProof]:
    """Make files cold, prove it, and count afterwards what the body left in the page cache.

        with cold_read(bundle_files) as proof:
            measure()
        show(proof.cold, proof.reason, proof.left_bytes)

    The proof is about this machine's page cache: caches of the drive, or of a virtual machine's host, are out of sight.

    Raises:
        OSError: a file can't be opened.
    """
    files = [Path(path) for path in paths]
    doubts = [f"{file}: {doubt}" for file in files if (doubt := _make_cold(file))]
    before = {file: resident_bytes(file) for file in files}
    doubts += [f"{file}: {count} bytes were cached again" for file, count in before.items() if count and not doubts]
    proof = ColdProof(cold=not doubts, reason="; ".join(doubts), before_bytes=sum(before.values()))
    yield proof
    proof.left_bytes = sum(map(resident_bytes, files))


def mounts(table: str | None = None) -> list[Mount]:
    """The mounts in the text of a ``mountinfo`` file; without one, those that this process sees."""
    text = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()) if table is None else table
    return [_parse_mount(line) for line in text.split("\n") if line]  # other separators may be part of a path


def mount_of(path: str | os.PathLike[str]) -> Mount:
    """The mount that a path lies on.

    Raises:
        LookupError: it lies on none that this process sees.
    """
    with _opened(path, os.O_PATH) as descriptor:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines())
    number = int(fields["mnt_id"])
    for mount in mounts():
        if mount.number == number:
            return mount
    raise LookupError(f"{os.fspath(path)}: no mount has the number {number}")


@contextmanager
def _opened(path: str | os.PathLike[str], flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _resident_pages(mapping: mmap.mmap) -> int:
    """Pages of a mapping that are in memory; none of them is touched for it."""
    flags = np.zeros(-(-len(mapping) // mmap.PAGESIZE), np.uint8)
    start = np.frombuffer(mapping, np.uint8)
    if _libc.mincore(start.ctypes.data, len(mapping), flags.ctypes.data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mincore: {os.strerror(number)}")
    del start  # a mapping that is still looked at can't be closed
    return int(np.count_nonzero(flags & 1))


def _make_cold(file: Path) -> str:
    """Drop a file from the page cache; why that failed or proves nothing, else an empty text."""
    doubt = _cache_out_of_sight(file)
    if file.stat().st_size == 0 or doubt:
        return doubt
    if not _reads_show(file):
        return "a buffered read does not show in mincore, so that nothing is known about its cache"
    left = _drop_until_gone(file)
    if left == 0:
        return ""
    if not _may_see_residency(file):
        return "neither owned nor writable by this user, from whom Linux hides what is cached"
    return f"{left} bytes stayed cached: another process maps, reads or writes it"


def _cache_out_of_sight(file: Path) -> str:
    """Why the file system may serve reads from memory that mincore doesn't show, else an empty text."""
    try:
        mount = mount_of(file)
    except LookupError as error:
        return str(error)
    if mount.kind in _MEMORY:
        return f"{mount.kind} keeps its files in memory"
    if mount.kind not in _PROVABLE:
        return f"{mount.kind} may lie on other caches, which mincore does not show; put it on a local disk"
    if mount.source.startswith("/dev/loop"):
        return f"{mount.source} is a file of another file system, which may be cached there"
    return ""


def _reads_show(file: Path) -> bool:
    """Whether mincore sees a page that has just been read: the control without which 0 would prove nothing."""
    with _opened(file, os.O_RDONLY) as descriptor:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        os.pread(descriptor, 1, 0)
    return resident_bytes(file) > 0


def _drop_until_gone(file: Path) -> int:
    """Bytes that stay cached after a few tries: pages under read-ahead or write-back go only when that ends."""
    for _ in range(5):
        drop(file)
        left = resident_bytes(file)
        if left == 0:
            break
        time.sleep(0.02)
    return left


def _may_see_residency(file: Path) -> bool:
    return file.stat().st_uid == os.geteuid() or os.access(file, os.W_OK)


def _parse_mount(line: str) -> Mount:
    """``36 35 98:0 /root /point rw shared:1 - ext4 /dev/sda1 rw,errors=continue``; spaces are written as octal."""
    ours, _, theirs = line.partition(" - ")
    number, _, _, root, point, *_ = ours.split(" ")
    kind, source, options = theirs.split(" ", 2)
    return Mount(
        int(number), _unescape(root), Path(_unescape(point)), kind, _unescape(source), tuple(options.split(","))
    )


def _unescape(text: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
