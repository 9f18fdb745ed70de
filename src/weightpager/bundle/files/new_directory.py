"""A directory that appears whole or not at all: written beside its place, synced, and put there.

That is one step where the file system can exchange two directories, and two steps elsewhere: between them nothing is at
the place, and what was there lies beside it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from weightpager.errors import WeightpagerError


def imitate(path: Path, model: os.stat_result) -> None:
    """Give a file or directory another one's mode, and its owner and group where that is permitted."""
    for owner, group in ((-1, model.st_gid), (model.st_uid, -1)):
        with suppress(OSError):
            os.chown(path, owner, group)
    path.chmod(stat.S_IMODE(model.st_mode))


def imitate_tree(root: Path, folder: os.stat_result, file: os.stat_result) -> None:
    """`imitate` for a directory and all in it. ``root`` comes last: until then nobody else can enter it.

    Files with more than one hard link are left alone: they belong to other bundles too.
    """
    for path in root.rglob("*"):
        if path.is_dir():
            imitate(path, folder)
        elif path.stat().st_nlink == 1:
            imitate(path, file)
    imitate(root, folder)


def open_up(root: Path) -> None:
    """Give a directory from ``mkdtemp``, which is private, the mode that a new directory would have here."""
    usual = root / ".mode"
    usual.mkdir()
    mode = stat.S_IMODE(usual.stat().st_mode)
    usual.rmdir()
    root.chmod(mode)


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

    Raises ``taken`` if another process holds the lock; ``errors`` turns an `OSError` of the storage into one of ours.
    Where a file system has no locks, the body runs without one unless it is ``required``. A file that is created gets
    this mode.
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

    Where the file system has no locks, an `OSError` says so if one is ``required``.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        if required:
            raise
    return True


_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_RENAMEAT2 = {("x86_64", 8): 316, ("aarch64", 8): 276}
"""The system call's number by machine and bytes of a pointer: a C library may have no function for it, as musl's."""

_CANNOT = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Of a file system that can't exchange, a kernel that doesn't know how to, or a sandbox that lets nobody ask."""


@contextmanager
def new_directory(path: Path, errors: Callable[[], AbstractContextManager[None]], *, replace: bool) -> Iterator[Path]:
    """A directory to write into, which takes its place at ``path`` when the body ends well.

    Whatever stops the body, an error, a full disk or Ctrl-C, leaves ``path`` as it was and no temporary directory. What
    a killed process has left is removed by the next one that writes to the same path. Where the file system can't
    exchange two directories, a kill at the end may leave nothing at ``path``: see `left_aside`.

    Args:
        path: where it shall be; its parent exists.
        errors: turns an `OSError` of the storage into one of ours.
        replace: take the place of what is there, whose mode the body then hands on. Else only an empty directory that
            has come meanwhile is replaced.
    """
    with _scratch(path.parent, _beginning(path), errors) as (temporary, held):
        yield temporary
        with errors():
            if not os.path.lexists(path):
                open_up(temporary)
            for folder, _, names in os.walk(temporary):
                for name in names:
                    sync(Path(folder, name))
                sync(Path(folder))
            if replace and os.path.lexists(path):
                _exchange(temporary, path)
            else:
                temporary.rename(path)
            unlock(held)  # it is in its place, and whoever comes next may replace it
            sync(path.parent)


@contextmanager
def scratch(
    parent: Path, prefix: str, errors: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Iterator[Path]:
    """A directory that is gone afterwards; what killed processes have left under the same prefix is removed first."""
    with _scratch(parent, prefix, errors) as (temporary, _):
        yield temporary


@contextmanager
def _scratch(
    parent: Path, prefix: str, errors: Callable[[], AbstractContextManager[None]]
) -> Iterator[tuple[Path, int]]:
    """`scratch`, and the descriptor that holds its lock."""
    remove_leftovers(parent, prefix)
    with errors():
        temporary, held = _claimed(parent, prefix)
    try:
        yield temporary, held
    finally:
        try:
            _remove(temporary)
        finally:
            unlock(held)
            os.close(held)


def _claimed(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new directory and the lock that tells others that its writer lives.

    Until the lock is held the directory looks like a killed process's, so another process that begins at the same
    moment may remove it. Another one is made then.
    """
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
            if lock(descriptor, required=False) and temporary.exists():
                return temporary, descriptor
            os.close(descriptor)


def remove_leftovers(parent: Path, prefix: str) -> None:
    """Remove the `scratch` directories of killed processes, by the prefix of their names."""
    for entry in parent.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError):  # another user's, gone by now, or on a file system without locks
            descriptor = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if lock(descriptor):
                    _remove(entry)
            finally:
                os.close(descriptor)


def _remove(directory: Path) -> None:
    """Remove a directory, as far as that is permitted; also one that nobody may write into, as a replaced bundle's."""
    for folder, _, _ in os.walk(directory):
        with suppress(OSError):
            Path(folder).chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)


def sync(path: Path) -> None:
    """See that a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, target: Path) -> None:
    if not _rename_exchange(new, target):
        # The file system can't exchange: between these two steps the target is missing, but never half-written.
        old = target.with_name(f"{_aside(target)}{new.name.removeprefix(_beginning(target))}")
        try:
            target.rename(old)
            new.rename(target)
        except BaseException:  # Ctrl-C included, which may come when a step has been made
            if not os.path.lexists(target):
                old.rename(target)
            raise
        _remove(old)


def restore(target: Path) -> None:
    """Undo half of an exchange: put back what a killed process had moved aside, or remove it if all was done.

    What a process has moved aside that lives, and is about to put another one in its place, stays.
    """
    for old in _old(target):
        if _is_exchanged(old, target):
            continue
        if os.path.lexists(target):
            _remove(old)
        else:
            old.rename(target)


def _is_exchanged(old: Path, target: Path) -> bool:
    """Whether the process lives that has moved ``old`` aside: it holds the directory that comes in its place."""
    new = target.with_name(f"{_beginning(target)}{old.name.removeprefix(_aside(target))}")
    with suppress(OSError):
        descriptor = os.open(new, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return not lock(descriptor)
        finally:
            os.close(descriptor)
    return False


def left_aside(target: Path) -> Path | None:
    """What a killed process has moved aside from a place where nothing is now, if it is still there.

    The process may also be alive, between its two steps, so nobody but a writer may move it back without being asked.
    """
    with suppress(OSError):
        if not os.path.lexists(target):
            return next((old for old in _old(target) if old.is_dir()), None)
    return None


def _old(target: Path) -> list[Path]:
    return sorted(target.parent.glob(f"{glob.escape(_aside(target))}*"))


def _beginning(target: Path) -> str:
    """The beginning of the name under which a directory is written."""
    return f".{target.name}.tmp-"


def _aside(target: Path) -> str:
    """The beginning of the name under which a directory waits while another one takes its place."""
    return f".{target.name}.old-"


def _rename_exchange(new: Path, target: Path) -> bool:
    """Exchange two directories. Returns False where that can't be done in one step."""
    renameat2 = _renameat2(ctypes.CDLL(None, use_errno=True))
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT:
        return False
    raise OSError(code, os.strerror(code), str(target))


def _renameat2(library: Any) -> Callable[[int, bytes, int, bytes, int], int] | None:
    """The C library's function, or else the system call itself where its number is known."""
    call = getattr(library, "renameat2", None)
    if call is None:
        number = _RENAMEAT2.get((os.uname().machine, ctypes.sizeof(ctypes.c_void_p)))
        call = None if number is None else partial(library.syscall, ctypes.c_long(number))
    return call
