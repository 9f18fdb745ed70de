"""The log of the compiler, its data and a cluster that it uses, shown as lines for people beside the progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from weightpager.cli import output
from weightpager.logs import logging_by

_LOGGERS = ("weightpager.compiler", "weightpager.task_data", "weightpager.ray")


@contextmanager
def notes(quiet: bool = False) -> Iterator[None]:
    """Show what the block logs on standard error, each line once; if ``quiet``, warnings only."""
    console, level = _Console(), logging.WARNING if quiet else logging.INFO
    with ExitStack() as shown:
        for name in _LOGGERS:
            shown.enter_context(logging_by(console, name, level))
        yield


class _Console(logging.Handler):
    """Prints lines; above the progress bars, if there are any. Data that are read twice are warned of once."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        line, style = record.getMessage(), "yellow" if record.levelno >= logging.WARNING else None
        if line not in self._said:
            self._said.add(line)
            output.errors().print(line, style=style)
