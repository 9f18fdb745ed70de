"""One text on its way through the queue and the worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from weightpager.answers.work import Generate, Logprobs, Outcome, Work
from weightpager.bundle import TaskEntry
from weightpager.errors import RequestTimeoutError, ServerClosedError
from weightpager.server.scheduling.batching import Waiting
from weightpager.server.scheduling.settings import NO_LIMITS, BatchLimits


@dataclass(frozen=True)
class Delta:
    """A piece of a text that is being generated. ``index`` is the text's number in its request."""

    index: int
    text: str
    logprobs: Logprobs = ()


@dataclass(frozen=True)
class TextDone:
    index: int
    outcome: Outcome


@dataclass(frozen=True)
class TextFailed:
    index: int
    error: Exception


Event = Delta | TextDone | TextFailed


Listener = Callable[[Event], None]
"""Told of jobs' events in the worker's thread. It must return at once: a slow client can't hold a task."""


def shutting_down() -> ServerClosedError:
    """The error of a request that the server doesn't answer any more."""
    return ServerClosedError("the server is shutting down; ask again when it is back")


@dataclass(eq=False)
class Job:
    """One text of a request.

    Attributes:
        entry: its task, as it was when the request was read.
        arrived, deadline: times by `time.monotonic`.
        long: whether the text is so long that the model would read shorter texts of its batch in another way. Such
            texts run apart.
        limits: of its task's bundle.
        cached: True if its keys and values are kept and it is done in steps, False if it is read at once.
        began: when its batch began; None before.
        over: whether it has ended, and the listener knows how.
        cancelled: whether nobody waits for it any more.
    """

    entry: TaskEntry
    work: Work
    index: int
    arrived: float
    deadline: float
    listener: Listener
    limits: BatchLimits = NO_LIMITS
    long: bool = False
    cached: bool = False
    began: float | None = None
    over: bool = False
    cancelled: bool = False

    @property
    def task(self) -> str:
        return self.entry.name

    @property
    def places(self) -> int:
        """Places of the queue that it takes: as many as it holds pictures in memory, and one at least."""
        return max(1, self._pictures)

    @cached_property  # asked for at every step while the job waits
    def waiting(self) -> Waiting:
        """The job as the scheduler sees it."""
        work = self.work
        new_tokens = work.max_new_tokens if isinstance(work, Generate) else 0
        # A text that is read in pieces for its vector runs alone: its run reads one text.
        alone = id(self) if self.cached and not isinstance(work, Generate) else None
        kind = (work.kind, self.long, self.cached, alone)
        return Waiting(self.task, self.arrived, kind, work.tokens, new_tokens, self.cached, self._pictures, self.limits)

    @property
    def _pictures(self) -> int:
        return len(self.work.pictures) if isinstance(self.work, Generate) else 0

    def cancel(self) -> None:
        """Give it up: it won't begin, or it ends after the forward that is being computed. Any thread may call this."""
        self.cancelled = True

    def expire(self, now: float) -> bool:
        """End the job if it was cancelled or is late, and tell the listener; whether it has ended."""
        if not self.over and self.cancelled:  # the server stops, or the client has gone and doesn't read this
            self.fail(shutting_down())
        elif not self.over and now > self.deadline:
            late = "the request waited longer" if self.began is None else "the request took longer"
            self.fail(RequestTimeoutError(f"{late} than the server gives it"))
        return self.over

    def more(self, text: str, logprobs: Logprobs = ()) -> None:
        self.listener(Delta(self.index, text, logprobs))

    def fail(self, error: Exception) -> None:
        self._end(TextFailed(self.index, error))

    def done(self, outcome: Outcome) -> None:
        self._end(TextDone(self.index, outcome))

    def _end(self, event: Event) -> None:
        self.over = True
        self.listener(event)
