"""Log lines as JSON objects."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from weightpager.logs import logging_by

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
    """Send our loggers' lines and uvicorn's to standard error while the block runs. No other logger is touched."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    with ExitStack() as undoing:
        for name in _OWN:
            undoing.enter_context(logging_by(handler, name, level.upper()))
        yield
