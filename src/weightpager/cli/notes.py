"""The compiler's log, shown as lines for people beside the progress."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager

from weightpager.cli import output
from weightpager.logs import logging_by


def notes(quiet: bool = False) -> AbstractContextManager[None]:
    """Show what the block logs on standard error; if ``quiet``, warnings only."""
    return logging_by(_Console(), "weightpager.compiler", logging.WARNING if quiet else logging.INFO)


class _Console(logging.Handler):
    """Prints lines; above the progress bars, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        output.errors().print(record.getMessage(), style=style)
