"""Requests of the last minute: how many, how fast they were answered, and which were not served."""

from __future__ import annotations

import math
import threading
import time
import collections
from collections.abc import Callable

from weightpager.server.schema.status import TrafficStatus

SECONDS = 60.0
"""Looked back; requests of an earlier time tell nothing of now."""

_MOST = 20_000
"""Requests that are kept; with more of them, the time looked back is shorter."""


class Traffic:
    """Remembers requests for a minute. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing has been answered; ``clock`` in seconds."""
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._answered: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=_MOST)

    def add(self, status: int, seconds: float) -> None:
        """A request has been answered, after ``seconds``."""
        with self._lock:
            self._answered.append((self._clock(), status, seconds))

    def recent(self) -> TrafficStatus:
        """The last minute, or what there was of it."""
        with self._lock:
            now, answered = self._clock(), list(self._answered)
        since = max(self._started, now - SECONDS)
        if len(answered) == _MOST:
            since = max(since, answered[0][0])
        rows = [(status, seconds) for at, status, seconds in answered if at >= since]
        fast = sorted(seconds for status, seconds in rows if status < 400)
        errors = collections.Counter(status for status, _ in rows if status >= 400)
        return TrafficStatus(
            seconds=now - since,
            requests=len(rows),
            median_seconds=_rank(fast, 0.5),
            p95_seconds=_rank(fast, 0.95),
            errors=dict(sorted(errors.items())),
        )


def _rank(ordered: list[float], share: float) -> float | None:
    """The smallest value that this share of the others doesn't exceed; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
