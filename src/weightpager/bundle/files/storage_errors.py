"""What the storage refuses, a full disk above all, as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightpager.errors import WeightpagerError


@contextmanager
def storage_errors_as(kind: type[WeightpagerError], what: str, then: str = "") -> Iterator[None]:
    """Turn an `OSError` of the storage into an error of ours, which names the file.

    Args:
        kind: of the error.
        what: its text names where the storage names no file.
        then: the end of its text.
    """
    try:
        yield
    except OSError as error:
        raise kind(f"cannot write {error.filename or what}: {error.strerror or error}{then}") from error
