"""What a history file tells: a trace, read whatever has become of it."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from weightpager.errors import ConfigError
from weightpager.runtime.prediction.appended_file import AppendedFile
from weightpager.trace_file import Counts, Visit, encode, parse

_BEGINNINGS = b'{"task": ', b'{"requests": '


@dataclass
class History:
    """The visits and counts of a file.

    Attributes:
        visits: oldest first, in seconds since 1970. Times never decrease: where a clock was set back, a gap has no
            length.
        requests: how often each task was asked for.
        switches: number of switches.
        lost: number of lines that were damaged.
        foreign: number of lines that can't have been a history's.
    """

    visits: list[Visit] = field(default_factory=list)
    requests: Counter[str] = field(default_factory=Counter)
    switches: int = 0
    lost: int = 0
    foreign: int = 0

    @property
    def is_foreign(self) -> bool:
        """Whether the file was something else: what isn't ours must not be written to."""
        return bool(self.foreign) and not self.visits and not self.requests

    def lose(self, line: bytes) -> bool:
        """Count a line that can't be read. Returns whether there is one: a file may end in zeros after a power cut."""
        if rest := line.strip(b" \0"):
            self.lost += 1
            self.foreign += not any(rest.startswith(ours[: len(rest)]) for ours in _BEGINNINGS)
        return bool(rest)


def parse_history(content: bytes) -> History:
    """What can be read of a file. A damaged line is a gap. Never raises."""
    history, gap, shift = History(), True, 0.0
    for line in content.splitlines():
        try:
            row = parse(line)
        except ValueError:
            gap = history.lose(line) or gap
            continue
        if isinstance(row, Counts):
            history.requests += row.requests
            history.switches += row.switches
        elif math.isnan(row.start):  # somebody's trace, in which only the order matters
            history.foreign += 1
        else:
            resumed, latest = row.resumed or gap, history.visits[-1].start if history.visits else -math.inf
            shift = max(0.0 if resumed else shift, latest - row.start)
            history.visits.append(Visit(row.task, row.start + shift, resumed))
            gap = False
    return history


_log = logging.getLogger(__name__)

LIMIT = 1 << 20
"""Bytes; some ten thousand visits."""

DELAY = 1.0
"""Seconds that a visit may wait to be written: what a killed process loses."""

SYNC_INTERVAL = 60.0
"""Seconds between two calls that wait for the disk: what a power cut loses. More often would wear out flash."""

_JOIN_SECONDS = 5.0
"""How long closing waits for a disk that hangs."""

_PENDING = 10_000
_MOST_READ = 16 << 20  # far more than a limit and a batch; what else may lie there isn't read into memory


class HistoryFile:
    """Appends visits to a trace file (see `weightpager.trace_file`). Safe to use from several threads.

    ``add`` only puts into memory. A thread writes after ``delay``, and waits for the disk every ``SYNC_INTERVAL``, at
    ``close``, and when the file is full: then its newer half goes into a new file that takes its place in one step. A
    process that is killed at any time leaves a readable file. Storage that fails or is full costs history, never a
    switch: one warning is logged.

    Args:
        path: the file; it and ``<path>.lock`` are created, readable for their owner only.
        limit: bytes that the file may reach, give or take one batch.
        delay: seconds that a visit may wait to be written.

    Raises:
        ConfigError: the file cannot be opened, isn't a history, or another engine has it open.
    """

    def __init__(self, path: Path | str, limit: int = LIMIT, delay: float = DELAY) -> None:
        self.path = Path(path).resolve()
        self._limit, self._delay = limit, delay
        self._file = AppendedFile(self.path)
        self._history = self._read()
        if self._history.is_foreign:
            self._file.close()
            raise ConfigError(
                f"{path}: expected a history of tasks, or no file yet, found a file of something else; name another one"
            )
        self._latest = max([-math.inf, *(visit.start for visit in self._history.visits[-1:])])
        self._gap = True  # before the next visit that is written
        self._torn = True  # the file's last line may have no end
        self._failed = self._closing = self._closed = False
        self._synced, self._unsynced = time.monotonic(), False
        self._pending: deque[Visit] = deque(maxlen=_PENDING)
        self._requests: Counter[str] = Counter()
        self._switches = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="weightpager-history", daemon=True)
        self._thread.start()

    def restore(self) -> History:
        """What earlier runs have left. It isn't kept in memory: asked again, it is empty."""
        history, self._history = self._history, History()
        return history

    def request(self, task: str) -> None:
        """The task was asked for. Written together with the next visit."""
        with self._changed:
            self._requests[task] += 1

    def add(self, task: str, seconds: float, *, switch: bool) -> None:
        """The task became the current one.

        Args:
            task: its name.
            seconds: when, since 1970. Times in the file never decrease.
            switch: whether another task was the current one before, in this run.
        """
        with self._changed:
            self._switches += switch
            self._gap |= len(self._pending) == _PENDING  # the oldest goes
            self._latest = max(self._latest, round(seconds, 6))
            self._pending.append(Visit(task, self._latest))
            if len(self._pending) == 1:
                self._changed.notify()

    def flush(self, *, sync: bool = False) -> None:
        """Write what is pending. With ``sync`` wait for the disk."""
        with self._writing:
            if self._closed:
                return
            lines = self._take()
            try:
                self._append(lines)
                lines = b""
                self._settle(sync)
            except OSError as error:
                self._gap |= bool(lines)
                self._fail(error)

    def close(self) -> None:
        """Write everything and give the file free. Does nothing when closed, and doesn't wait for a disk that hangs."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is threading.current_thread():  # the garbage collector may close the engine, in any thread
            return
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            _log.warning("%s: the disk hangs; some of the history of tasks may be lost", self.path)

    def _serve(self) -> None:
        while True:
            with self._changed:
                changed = self._changed.wait_for(lambda: bool(self._closing or self._pending), self._until_sync())
                if changed and self._changed.wait_for(lambda: self._closing, self._delay):
                    break
            self.flush()
        self.flush(sync=True)
        with self._writing:
            self._closed = True
            self._file.close()

    def _take(self) -> bytes:
        """The lines of what was pending until now."""
        with self._changed:
            visits, self._pending = self._pending, deque(maxlen=_PENDING)
            requests, self._requests = self._requests, Counter()
            switches, self._switches = self._switches, 0
            if visits and self._gap:
                visits[0], self._gap = replace(visits[0], resumed=True), False
        lines = [encode(visit) for visit in visits]
        if requests or switches:
            lines.append(encode(Counts(requests, switches)))
        return b"".join(lines)

    def _append(self, lines: bytes) -> None:
        if not lines:
            return
        if self._file.size > 2 * self._limit:
            self._shorten()  # or nothing is appended
        torn, self._torn = self._torn and self._file.tail(1) not in (b"", b"\n"), True
        self._file.append(b"\n" * torn + lines)
        self._torn, self._unsynced = False, True

    def _settle(self, sync: bool) -> None:
        """Replace the file if it is full, else wait for the disk if it is time."""
        due = sync or self._until_sync() == 0
        if due:  # also if what follows fails: it isn't tried again at once
            self._synced, self._unsynced = time.monotonic(), False
        if self._file.size > self._limit:
            self._shorten()
            self._synced, self._unsynced = time.monotonic(), False
        elif due:
            self._file.sync()

    def _until_sync(self) -> float | None:
        """Seconds until the disk is waited for; None if it has everything."""
        return max(0.0, self._synced + SYNC_INTERVAL - time.monotonic()) if self._unsynced else None

    def _shorten(self) -> None:
        self._file.replace(_newest(self._read(), self._limit // 2))

    def _read(self) -> History:
        try:
            return parse_history(self._file.tail(_MOST_READ))
        except OSError as error:
            _log.warning("%s: the history of tasks cannot be read, it starts anew: %s", self.path, error)
            return History()

    def _fail(self, error: OSError) -> None:
        if not self._failed:
            _log.warning("%s: the history of tasks cannot be written, some of it will be lost: %s", self.path, error)
        self._failed = True


def _newest(history: History, room: int) -> bytes:
    """Lines of all counts and the newest visits, in so many bytes."""
    requests = history.requests
    while len(line := encode(Counts(requests, history.switches))) > room // 2 and requests:
        requests = Counter(dict(requests.most_common(len(requests) // 2)))
    sizes = accumulate((len(encode(visit)) for visit in reversed(history.visits)), initial=len(line))
    kept = sum(size <= room for size in sizes) - 1
    return b"".join([line, *map(encode, history.visits[len(history.visits) - kept :])])
