"""Kernels that read slots, and may be late."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol


class Event(Protocol):
    """A point in a stream's work; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether all work before this point is done."""

    def synchronize(self) -> None:
        """Wait until all work before this point is done."""


class Stream(Hashable, Protocol):
    """Work that a device does in order; `torch.cuda.Stream` is one. It takes events of its own kind only."""

    def record_event(self, event: Any = None) -> Any:
        """The event, a new one if None, now stands after all that the stream has been given so far."""

    def wait_event(self, event: Any) -> None:
        """What the stream is given from now on begins only after the event."""


class ReadFence:
    """Remembers the streams' last reads.

    One event a stream is recorded again and again, until somebody has asked for it: then it must not move any more.
    """

    def __init__(self, current_stream: Callable[[], Stream]) -> None:
        """Nothing has been launched.

        Args:
            current_stream: gives the stream in which the calling thread launches kernels.
        """
        self._current_stream = current_stream
        self._lock = threading.Lock()
        self._latest: dict[Stream, Event] = {}
        self._asked_for: list[Event] = []

    def note(self) -> None:
        """The calling thread has launched kernels that read slots."""
        stream = self._current_stream()
        with self._lock:
            self._latest[stream] = stream.record_event(self._latest.get(stream))

    def events(self) -> Sequence[Event]:
        """Events after which all reads noted until now have run, without events that have passed."""
        with self._lock:
            self._asked_for += self._latest.values()
            self._latest = {}
            self._asked_for = [event for event in self._asked_for if not event.query()]
            return tuple(self._asked_for)
