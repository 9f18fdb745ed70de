"""Says whether a task's pages may be read now."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from weightpager.errors import SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.interrupts import uninterrupted
from weightpager.runtime.paging.page_waits import PendingPages

_LOOK_AGAIN = 0.0005
"""Seconds between two looks whether layers are still inside."""


class TaskGate:
    """Counts who holds a task active, and knows which readers are at its pages.

    The engine holds a gate; the task's layers enter it. The last `release` returns only when no reader is inside, and
    pages are given up only after that. So no page goes while a layer reads it.

    Attributes:
        note_read: called when a layer has launched what reads its pages.
        leave: has a reader inside no more; called with it in the ``finally`` of the ``try`` that it entered in, whether
            it was inside or not. It is one call of native code: Ctrl-C can't come before it is done.
    """

    def __init__(self, task: str, note_read: Callable[[], None] = lambda: None) -> None:
        """Nobody holds the task.

        Args:
            task: its name.
            note_read: called when a layer has launched what reads its pages.
        """
        self._task = task
        self.note_read = note_read
        self._lock = threading.Lock()  # of the holders
        self._holders = 0
        self._readers: set[object] = set()
        self.leave: Callable[[object], None] = self._readers.discard
        self._pending: PendingPages | None = None

    @property
    def holders(self) -> int:
        """How many hold the task active."""
        return self._holders

    @property
    def is_ready(self) -> bool:
        """Whether layers find all pages there."""
        return self._pending is None or self._pending.complete

    @property
    def has_failed(self) -> bool:
        """Whether a page that layers wait for has failed to load."""
        return self._pending is not None and self._pending.error is not None

    def hold(self, pending: PendingPages | None = None) -> None:
        """The task is in place, or its last pages are on their way: let layers in as theirs arrive.

        A load that has failed doesn't count where somebody else has the task in place.
        """
        with self._lock:
            if pending is None or pending.error is None or not self._holders:
                self._pending = pending
            self._holders += 1

    @uninterrupted
    def release(self) -> None:
        """Undo one `hold`. The last one waits for the layers that are reading, whatever signal handlers raise.

        The handlers run afterwards, also where a layer of another thread computes for long.
        """
        with self._lock:
            self._holders -= 1
        while not self._holders and self._readers:
            time.sleep(_LOOK_AGAIN)  # readers leave without a word

    def enter(self, reader: object, layer: int) -> None:
        """A layer starts to read, as soon as its pages are there.

        Args:
            reader: what stands for it, and for nobody else who is inside.
            layer: the model layer whose pages it reads.

        Raises:
            TaskNotActiveError: nobody holds the task active.
            SwitchFailedError: a page of the task can't be loaded.
        """
        arrived: PendingPages | None = None
        while True:
            self._readers.add(reader)  # first: whoever releases the task afterwards waits
            self._check_active()
            pending = self._pending
            if pending is None or pending is arrived:
                return
            self._readers.discard(reader)  # leaving the task must not wait for who waits for a page
            self._wait_for(layer, pending)  # meanwhile the task may be left, and entered again
            arrived = pending

    def _wait_for(self, layer: int, pending: PendingPages) -> None:
        """Wait for a layer's pages."""
        try:
            pending.wait_for(layer)
        except WeightpagerError as error:
            self._check_active()
            if self._pending is pending:  # else the task was entered anew
                raise SwitchFailedError(
                    f"a page of task {self._task!r} could not be loaded while it ran; activate it again: {error}"
                ) from error

    def _check_active(self) -> None:
        if self._holders == 0:
            raise TaskNotActiveError(
                f"task {self._task!r} is not active, its pages may be gone; "
                f"run it inside 'with engine.task({self._task!r})' or after 'engine.activate({self._task!r})'; the "
                "engine must be open"
            )
