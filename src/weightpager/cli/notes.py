"""What long work has to say beside its progress: the log of the compiler, as lines for people."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from weightpager.cli import output
from weightpager.logs import logging_by


def notes(quiet: bool = False) -> AbstractContextManager[None]:
    """Show what is logged inside, on standard error; quiet work shows warnings only."""
    return logging_by(_Console(), "weightpager.compiler", logging.WARNING if quiet else logging.INFO)


class _Console(logging.Handler):
    """Lines above the bars, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        output.errors.print(record.getMessage(), style=style)
