"""The server's state as a document; needs neither torch nor a server to be read."""

from __future__ import annotations

from typing import Literal

from weightpager.server.schema.common import Answer


class TaskStatus(Answer):
    """One task.

    Attributes:
        available: whether the budget ever holds it.
        layers: for each layer how many of its pages are resident, and how many it needs.
    """

    name: str
    kind: str
    available: bool = True
    resident: float
    waiting: int
    requests: int
    layers: list[tuple[int, int]]


class SwitchStatus(Answer):
    """One switch; ``time`` in seconds since 1970."""

    time: float
    from_task: str | None
    to_task: str
    bytes: int
    seconds: float


class TrafficStatus(Answer):
    """Requests for work in the last minute.

    Attributes:
        seconds: looked back, less than a minute where the server is younger or very busy.
        requests: answered then.
        median_seconds, p95_seconds: from a request to the end of its answer, of those that succeeded; None of none.
        errors: by HTTP status, how many did not; 499 for clients that went away.
    """

    seconds: float
    requests: int
    median_seconds: float | None
    p95_seconds: float | None
    errors: dict[int, int]


class PrefetchStatus(Answer):
    """What prefetching does: pages that it brought, and their fate."""

    active: bool
    loaded: int
    hits: int
    late: int
    misses: int
    wasted: int


class ForecastStatus(Answer):
    """What comes next, as far as the past tells.

    Attributes:
        next: probability of each task to be the next one, in the order of ``tasks``; all 0 while none is current.
        seconds: until then; None if unknown.
        after: of each task, the probability of each other to follow it, whatever came before.
        switches, foreseen, log_loss_bits: that were foretold, how many of them rightly, and by what they were missed.
    """

    next: list[float]
    seconds: float | None
    after: list[list[float]]
    switches: int
    foreseen: float
    log_loss_bits: float


class Status(Answer):
    """All of it.

    Attributes:
        state: whether requests are taken; ``stuck`` while the worker takes too long over one thing.
        memory: bytes by purpose.
        process_bytes: of memory that the whole process holds, what the budget covers included; None where unknown.
        traffic: None of a server of an older version.
        pages: for each layer a digit per page, 1 where it is resident; None where there are too many.
        prefetch: None if nothing is prefetched.
        forecast: None before the first request.
        followed: how often each task was followed by each other, in the order of ``tasks``.
    """

    version: str
    state: Literal["ready", "stuck", "stopping"]
    time: float
    uptime: float
    kernel: str
    direct_io: bool
    budget: int
    memory: dict[str, int]
    process_bytes: int | None = None
    traffic: TrafficStatus | None = None
    page_bytes: int
    slots: int
    resident_pages: int
    working_set_pages: int
    bytes_read: int
    current: str | None
    running: int
    queue_limit: int
    tasks: list[TaskStatus]
    pages: list[str] | None
    prefetch: PrefetchStatus | None
    forecast: ForecastStatus | None
    switches_total: int
    switches: list[SwitchStatus]
    followed: list[list[int]]
