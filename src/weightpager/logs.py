"""Where the lines of a logger go for a while."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def logging_by(handler: logging.Handler, name: str, level: int | str) -> Iterator[None]:
    """A logger has this handler and level while the block runs, and tells no logger above it."""
    logger = logging.getLogger(name)
    before, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagates
