"""Says whether a task's pages may be read now."""

from __future__ import annotations

import threading

from weightpager.errors import TaskNotActiveError


class TaskGate:
    """Counts who holds a task active and which layers are reading its pages.

    Held by the engine, entered by the task's layers; the order of events makes a page that is being read safe:
    `release` returns only when no layer is inside, and only then may the pages be unlocked.
    """

    def __init__(self, task: str) -> None:
        self._task = task
        self._changed = threading.Condition()
        self._holders = 0
        self._readers = 0

    @property
    def holders(self) -> int:
        """How many hold the task active."""
        return self._holders

    def hold(self) -> None:
        """The task's pages are resident and locked: let layers in."""
        with self._changed:
            self._holders += 1

    def release(self) -> None:
        """Undo one `hold`; the last one waits for the layers that are reading, also when Ctrl-C is pressed.

        Whether this returns or raises, no layer is inside any more.
        """
        interruption = None
        with self._changed:
            self._holders -= 1
            while self._holders == 0 and self._readers:
                try:
                    self._changed.wait()
                except KeyboardInterrupt as pressed:
                    interruption = pressed
        if interruption is not None:
            raise interruption

    def enter(self, layer: int) -> None:  # noqa: ARG002 - the protocol's: all pages are there before a switch returns
        """A layer starts to read.

        Raises:
            TaskNotActiveError: nobody holds the task active.
        """
        with self._changed:
            if self._holders == 0:
                raise TaskNotActiveError(
                    f"task {self._task!r} is not active, its pages may be gone; "
                    f"run it inside 'with engine.task({self._task!r})' or after 'engine.activate({self._task!r})'"
                )
            self._readers += 1

    def leave(self, layer: int) -> None:  # noqa: ARG002
        """A layer has finished reading."""
        with self._changed:
            self._readers -= 1
            if self._readers == 0:
                self._changed.notify_all()
