"""Proof that a measured read was cold: what the page cache holds of a file, before and after."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weightpager.machine.storage import mount_of

_PROVABLE = frozenset({"bcachefs", "btrfs", "exfat", "ext2", "ext3", "ext4", "f2fs", "jfs", "vfat", "xfs"})
"""File systems on a block device of this machine that cache file contents in the page cache and nowhere else."""

_MEMORY = frozenset({"devtmpfs", "hugetlbfs", "ramfs", "rootfs", "tmpfs"})

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)


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
    """Drop files from the page cache, prove it, and count afterwards what the body left there.

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
    if file.stat().st_uid != os.geteuid() and not os.access(file, os.W_OK):
        return "neither owned nor writable by this user, from whom Linux hides what is cached"
    return f"{left} bytes stayed cached: another process maps, reads or writes it"


def _cache_out_of_sight(file: Path) -> str:
    """Why the file system may serve reads from memory that mincore doesn't show, else an empty text."""
    try:
        mount = mount_of(file)
    except (OSError, LookupError):  # a system without /proc, or a mount out of sight
        return "the system doesn't tell on which file system it lies"
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
