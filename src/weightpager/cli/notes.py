"""What long work has to say beside its progress: the log of the compiler, as lines for people."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from weightpager.cli import output

_LOGGER = "weightpager.compiler"


@contextmanager
def notes(quiet: bool = False) -> Iterator[None]:
    """Show what is logged inside, on standard error; quiet work shows warnings only."""
    logger, handler = logging.getLogger(_LOGGER), _Console()
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates


class _Console(logging.Handler):
    """Lines above the bars, if there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        output.errors.print(record.getMessage(), style=style, markup=False, highlight=False, soft_wrap=True)
