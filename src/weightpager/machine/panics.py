"""Panics of libraries that are written in Rust."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Turn a panic into an ordinary error: PyO3 raises it as a `BaseException`, which nobody expects of bad input.

    Raises:
        RuntimeError: there was one.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise RuntimeError(f"a library panicked: {panic}") from panic
