"""Writing a bundle: into a temporary directory beside the target, exchanged for it in one step."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from blake3 import blake3

from weightpager.bundle.files import hash_file
from weightpager.bundle.manifest import Manifest
from weightpager.bundle.permissions import imitate_tree, open_up
from weightpager.bundle.reader import MANIFEST, MANIFEST_HASH
from weightpager.errors import CompileError, ConfigError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


class BundleWriter:
    """Collects a bundle's files in a directory that nobody reads yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(self, name: str, write: Callable[[IO[bytes]], object]) -> None:
        """Create a file and have ``write`` fill it.

        Raises:
            CompileError: the storage refused it.
        """
        path = self.root / name
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # it may be a link to another bundle's file, which must stay as it is
            with path.open("wb") as file:
                write(file)

    def link(self, name: str, original: Path) -> None:
        """Take over a file of another bundle: as a hard link, which costs no space, where the file system can.

        A symbolic link is followed: downloads lie in caches as links, which lead nowhere from another directory.

        Raises:
            CompileError: the storage refused it.
        """
        path = self.root / name
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(os.path.realpath(original), path)
            except OSError:
                shutil.copyfile(original, path)

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, with the hash of every file but the page files, which page ids cover.

        Raises:
            CompileError: the storage refused it.
        """
        skipped = {MANIFEST, MANIFEST_HASH, *manifest.page_file_names()}
        with storage_errors():
            files = {name: hash_file(self.root / name) for name in _walk(self.root) if name not in skipped}
        text = manifest.model_copy(update={"files": files}).dump()
        self.add(MANIFEST, lambda file: file.write(text))
        self.add(MANIFEST_HASH, lambda file: file.write(blake3(text).hexdigest().encode() + b"\n"))


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the storage refuses, a full disk above all, into a `CompileError`."""
    try:
        yield
    except OSError as error:
        raise CompileError(f"cannot write the bundle: {error.strerror or error}") from error


@contextmanager
def writing(target: str | Path, *, force: bool = False) -> Iterator[BundleWriter]:
    """Write a bundle that appears at ``target`` whole, or not at all.

    Whatever stops the body, an error, a full disk or Ctrl-C, leaves the target as it was and no temporary directory.
    What a killed process has left is removed by the next one that writes the same target. A bundle that is replaced
    hands on its mode and that of its manifest, and owner and group where permitted; else the umask decides.

    Args:
        target: directory to create; a symbolic link to a bundle stays, and what it points to is replaced.
        force: replace an existing bundle. Anything else that exists is never replaced.

    Raises:
        ConfigError: the target exists and may not be replaced, or its parent doesn't exist.
        CompileError: the storage refused a write.
    """
    path = Path(os.path.realpath(target))
    _check_target(path, force)
    _remove_leftovers(path)
    with storage_errors():
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    lock = _lock(temporary)
    try:
        yield BundleWriter(temporary)
        with storage_errors():
            _permit(temporary, path)
            for name in _walk(temporary):
                sync(temporary / name)
            sync(temporary)
            _exchange(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _permit(new: Path, target: Path) -> None:
    if os.path.lexists(target):
        imitate_tree(new, target.stat(), (target / MANIFEST).stat())
    else:
        open_up(new)


def _prefix(path: Path) -> str:
    return f".{path.name}.tmp-"


def _lock(directory: Path) -> int | None:
    """Hold a lock on a temporary directory, which tells others that its writer lives; None if another holds it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _check_target(path: Path, force: bool) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"out: expected a directory to write into, but {path.parent} does not exist")
    if not os.path.lexists(path):
        return
    if not (path / MANIFEST).is_file():
        raise ConfigError(f"out: {path} exists and is not a bundle; choose another name")
    if not force:
        raise ConfigError(f"out: {path} exists; replace it with --force, or choose another name")


def _remove_leftovers(path: Path) -> None:
    for entry in path.parent.glob(f"{glob.escape(_prefix(path))}*"):
        lock = _lock(entry) if entry.is_dir() else None
        if lock is not None:
            shutil.rmtree(entry, ignore_errors=True)
            os.close(lock)


def _walk(root: Path) -> Iterator[str]:
    yield from sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def sync(path: Path) -> None:
    """See that a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _exchange(new: Path, target: Path) -> None:
    """Put ``new`` in the target's place; an old target ends where ``new`` was."""
    if not os.path.lexists(target):
        new.rename(target)
    elif not _rename_exchange(new, target):
        # The file system can't exchange: between these two steps the target is missing, but never half-written.
        old = target.with_name(f"{new.name}-old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old)
    sync(target.parent)


def _rename_exchange(new: Path, target: Path) -> bool:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(target), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(target))
