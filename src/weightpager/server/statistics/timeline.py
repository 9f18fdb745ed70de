"""What switches cost while a server ran: the latest ones, and their totals by pair."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from weightpager.engine.report import SwitchReport

_KEPT = 500


@dataclass(frozen=True)
class Switch:
    """One switch; ``time`` in seconds since 1970, as people's clocks say it."""

    time: float
    from_task: str | None
    to_task: str
    bytes: int
    seconds: float


class Timeline:
    """The latest switches. Safe to use from several threads.

    Args:
        tell: hears of every switch, in the thread that switched.
        clock: seconds since 1970.
    """

    def __init__(self, tell: Callable[[Switch], None], clock: Callable[[], float] = time.time) -> None:
        self._tell = tell
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: deque[Switch] = deque(maxlen=_KEPT)

    def add(self, report: SwitchReport) -> None:
        """A switch is over."""
        switch = Switch(self._clock(), report.from_task, report.to_task, report.bytes, report.seconds)
        with self._lock:
            self._latest.append(switch)
        self._tell(switch)

    def latest(self, count: int) -> list[Switch]:
        """So many of them at most, oldest first."""
        with self._lock:
            return list(self._latest)[-count:]
