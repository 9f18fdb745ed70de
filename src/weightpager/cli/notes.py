"""The log of the compiler, and of a cluster that it uses, shown as lines for people beside the progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from weightpager.cli import output
from weightpager.logs import logging_by


@contextmanager
def notes(quiet: bool = False) -> Iterator[None]:
    """Show what the block logs on standard error; if ``quiet``, warnings only."""
    console, level = _Console(), logging.WARNING if quiet else logging.INFO
    with logging_by(console, "weightpager.compiler", level), logging_by(console, "weightpager.ray", level):
        yield


class _Console(logging.Handler):
    """Prints lines; above the progress bars, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        output.errors().print(record.getMessage(), style=style)
