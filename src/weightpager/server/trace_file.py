"""The visits of all runs of a server, as lines of a trace that ``transitions:`` of a task file reads."""

from __future__ import annotations

import json
import os
from io import BufferedRandom
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.server.switch_log import Switch


class TraceFile:
    """Appends a line per switch. A line that a killed server didn't finish is cut off when the file is opened again."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            ConfigError: it can't be written, or isn't a trace.
        """
        self._path = path
        try:
            self._file: BufferedRandom = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
        except OSError as error:
            raise ConfigError(f"{path}: expected a file that can be written: {error.strerror or error}") from error
        try:
            content = self._file.read()
            whole = content.rfind(b"\n") + 1
            self._latest = _latest_time(content[:whole], path)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(whole)
        self._file.seek(whole)

    def add(self, switch: Switch) -> None:
        """One more visit. Its time is never before the last one's, whatever happens to the clock."""
        self._latest = max(self._latest, switch.time)
        row = {"task": switch.to_task, "time": round(self._latest, 3)}
        self._file.write(json.dumps(row).encode() + b"\n")
        self._file.flush()

    def read(self) -> bytes:
        """All of it."""
        return self._path.read_bytes()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _latest_time(content: bytes, path: Path) -> float:
    """Of the last line."""
    lines = content.splitlines()
    if not lines:
        return 0.0
    try:
        row = json.loads(lines[-1])
        row["task"] += ""
        return float(row.get("time", 0.0))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: expected a trace, found a last line that is none") from error
