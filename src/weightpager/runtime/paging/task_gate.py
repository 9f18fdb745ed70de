"""Says whether a task's pages may be read now."""

from __future__ import annotations

import threading
from collections.abc import Callable

from weightpager.errors import SwitchFailedError, TaskNotActiveError, WeightpagerError
from weightpager.runtime.paging.reads.page_waits import PendingPages


class TaskGate:
    """Counts who holds a task active and which layers are reading its pages.

    The engine holds a gate; the task's layers enter it. The last `release` returns only when no layer is inside, and
    pages are given up only after that. So no page goes while a layer reads it.
    """

    def __init__(self, task: str, note_read: Callable[[], None] = lambda: None) -> None:
        """Nobody holds the task.

        Args:
            task: its name.
            note_read: called when a layer has launched what reads its pages.
        """
        self._task = task
        self._note_read = note_read
        self._changed = threading.Condition()
        self._holders = 0
        self._readers = 0
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
        with self._changed:
            if pending is None or pending.error is None or not self._holders:
                self._pending = pending
            self._holders += 1

    def release(self) -> None:
        """Undo one `hold`. The last one waits for the layers that are reading, whatever signal handlers raise.

        Whether this returns or raises, the hold is undone and no layer is inside any more.
        """
        undone = False

        def leave() -> None:
            nonlocal undone
            with self._changed:
                if not undone:
                    self._holders -= 1
                    undone = True
                while self._holders == 0 and self._readers:
                    self._changed.wait()

        _uninterrupted(leave)

    def enter(self, layer: int) -> None:
        """A layer starts to read, as soon as its pages are there.

        Raises:
            TaskNotActiveError: nobody holds the task active.
            SwitchFailedError: a page of the task can't be loaded.
        """
        arrived: PendingPages | None = None
        while True:
            with self._changed:
                self._check_active()
                pending = self._pending
                if pending is None or pending is arrived:
                    self._readers += 1
                    return
            self._wait_for(layer, pending)  # meanwhile the task may be left, and entered again
            arrived = pending

    def leave(self, layer: int) -> None:  # noqa: ARG002 - the protocol's
        """A layer has finished reading, or has launched what reads."""
        try:
            self._note_read()
        finally:
            with self._changed:
                self._readers -= 1
                if self._readers == 0:
                    self._changed.notify_all()

    def _wait_for(self, layer: int, pending: PendingPages) -> None:
        """Wait for a layer's pages. It is no reader meanwhile: leaving the task must not wait for it."""
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


def _uninterrupted(step: Callable[[], None]) -> None:
    """Carry out a step to its end, however often a signal handler raises meanwhile, Ctrl-C or a time limit's.

    Args:
        step: that fails for no reason of its own, and goes on where it was when it is called again.

    Raises:
        BaseException: what a handler raised first, once the step is done.
    """
    raised: BaseException | None = None
    while True:
        try:
            step()
            break
        except BaseException as error:  # noqa: BLE001 - raised below
            raised = raised or error
    if raised is not None:
        raise raised
