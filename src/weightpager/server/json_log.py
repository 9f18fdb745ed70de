"""Log lines as JSON objects."""

from __future__ import annotations

import json
import logging
from typing import Any

LEVELS = ("debug", "info", "warning", "error")


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


def log_config(level: str, *, as_json: bool) -> dict[str, Any]:
    """For `logging.config.dictConfig`: our loggers and uvicorn's go to standard error, and no other is touched."""
    own = {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
    text = {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": JsonFormatter} if as_json else text},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}},
        "loggers": {"weightpager": own, "uvicorn": own},
    }
