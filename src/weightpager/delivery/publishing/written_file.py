"""A file of a repository that appears whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from weightpager.bundle.files.new_directory import sync
from weightpager.errors import DeliveryError

TEMPORARY = ".tmp-"


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn what the storage refuses, a full disk above all, into a `DeliveryError`."""
    try:
        yield
    except OSError as error:
        raise DeliveryError(f"cannot write {error.filename or 'the repository'}: {error.strerror or error}") from error


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file beside its place, sync it, and rename it; it may replace another one.

    Raises:
        DeliveryError: the storage refused it.
    """
    with storage_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)  # a web server reads it
            Path(temporary).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(temporary).unlink()
            raise
        sync(path.parent)


def remove_leftovers(root: Path) -> None:
    """Remove what killed writers have left. Only whoever holds the repository's lock may do so."""
    for path in root.rglob(f"{TEMPORARY}*"):
        with suppress(OSError):
            path.unlink()
