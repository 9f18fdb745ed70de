"""One text on its way through the queue and the worker."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

from weightpager.answers.work import Generate, Outcome, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestTimeoutError, ServerClosedError
from weightpager.server.scheduling.batching import Waiting


@dataclass(frozen=True)
class Delta:
    """More of a text that is being generated. ``index`` says which of a request's texts."""

    index: int
    text: str


@dataclass(frozen=True)
class Done:
    """A text's outcome."""

    index: int
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    """A text has none."""

    index: int
    error: Exception


Event = Delta | Done | Failed


class Listener(Protocol):
    """Who asked. Called from the worker's thread, and must return at once: a slow client can't hold a task."""

    def __call__(self, event: Event) -> None:
        """Something happened to a job."""


@dataclass(eq=False)
class Job:
    """One text of a request.

    Attributes:
        entry: of the task that it is for, as the request was read by it.
        work: to be done.
        index: of the text in its request.
        arrived, deadline: by `time.monotonic`.
        listener: who asked.
        long: whether shorter texts of its batch would be read in another way for it.
        cached: whether keys and values are kept for it, and it is done in steps; else it is read at once.
        began: when its batch began, None before.
        over: whether the listener has been told how it ended.
    """

    entry: TaskEntry
    work: Work
    index: int
    arrived: float
    deadline: float
    listener: Listener
    long: bool = False
    cached: bool = False
    began: float | None = None
    over: bool = False
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def task(self) -> str:
        """The name of the task that it is for."""
        return self.entry.name

    @property
    def waiting(self) -> Waiting:
        """As the scheduler sees it."""
        work = self.work
        fresh = work.max_new_tokens if isinstance(work, Generate) else 0
        kind = (work.kind, self.long, self.cached)
        return Waiting(self.task, self.arrived, kind, work.tokens, fresh, self.cached)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody wants it any more: it won't begin, or ends after the forward that is being computed.

        May be called from any thread.
        """
        self._cancelled.set()

    def given_up(self, now: float) -> bool:
        """Whether it needs no more work: it is over, nobody waits for it, or its time is up. The listener is told."""
        if not self.over and self.cancelled:  # or nobody listens
            self.fail(ServerClosedError("the server is shutting down; ask again when it is back"))
        elif not self.over and now > self.deadline:
            late = "the request waited longer" if self.began is None else "the request took longer"
            self.fail(RequestTimeoutError(f"{late} than the server gives it"))
        return self.over

    def more(self, text: str) -> None:
        """Tell the listener how its text goes on."""
        self.listener(Delta(self.index, text))

    def fail(self, error: Exception) -> None:
        """Tell the listener that it has no outcome."""
        self._end(Failed(self.index, error))

    def done(self, outcome: Outcome) -> None:
        """Tell the listener what has come of it."""
        self._end(Done(self.index, outcome))

    def _end(self, event: Event) -> None:
        self.over = True
        self.listener(event)
