"""One text on its way through the queue and the worker."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Protocol

from weightpager.bundle import TaskEntry
from weightpager.server.scheduler import Waiting
from weightpager.server.work import Generate, Outcome, Work


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
        began: when its batch began, None before.
    """

    entry: TaskEntry
    work: Work
    index: int
    arrived: float
    deadline: float
    listener: Listener
    long: bool = False
    began: float | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def task(self) -> str:
        """That it is for."""
        return self.entry.name

    @property
    def waiting(self) -> Waiting:
        """As the scheduler sees it."""
        work = self.work
        prompt, fresh = (len(work.ids), work.max_new_tokens) if isinstance(work, Generate) else (0, 0)
        return Waiting(self.task, self.arrived, (work.kind, self.long), prompt, fresh)

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Nobody wants it any more: it won't begin, or ends after the next token. May be called from any thread."""
        self._cancelled.set()
