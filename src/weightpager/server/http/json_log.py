"""Log lines as JSON objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_OWN = ("weightpager", "uvicorn")
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonFormatter(logging.Formatter):
    """``{"time": …, "level": …, "logger": …, "message": …}`` and whatever facts a line carries."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        row = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            row["exception"] = self.formatException(record.exc_info)
        return json.dumps(row, default=str)


@contextmanager
def logging_to_stderr(level: str, *, as_json: bool) -> Iterator[None]:
    """Our loggers' lines and uvicorn's go to standard error while the block runs; no other logger is touched."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    with ExitStack() as undoing:
        for name in _OWN:
            undoing.enter_context(_only(logging.getLogger(name), handler, level.upper()))
        yield


@contextmanager
def _only(logger: logging.Logger, handler: logging.Handler, level: str) -> Iterator[None]:
    """A logger that has this handler and level, and tells nobody above it."""
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
