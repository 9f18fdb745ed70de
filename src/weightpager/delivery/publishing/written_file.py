"""A file of a repository that appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from weightpager.bundle.files.new_file import UNFINISHED, new_file
from weightpager.bundle.files.storage_errors import storage_errors_as
from weightpager.errors import DeliveryError

storage_errors = partial(storage_errors_as, DeliveryError, "the repository")
"""A context that turns an `OSError` of the storage into a `DeliveryError`."""


def write_file(path: Path, pieces: Iterable[bytes]) -> None:
    """Write a file, which may replace another one, and the folders that it needs.

    Raises:
        DeliveryError: the storage refused it.
    """
    with storage_errors():
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path, 0o644) as file:
            os.fchmod(file.fileno(), 0o644)  # a web server reads it, whatever the umask
            for piece in pieces:
                file.write(piece)


def remove_leftovers(root: Path) -> None:
    """Remove what killed writers have left. Only whoever holds the repository's lock may do so."""
    for path in root.rglob(f".*{UNFINISHED}"):
        with suppress(OSError):
            path.unlink()
