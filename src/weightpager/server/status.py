"""The server's state as a document. Reading it needs neither torch nor a server or an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightpager.engine.report import EngineFigures


@dataclass(frozen=True, kw_only=True)
class TaskStatus:
    """One task.

    Attributes:
        available: whether the budget has room for it.
        prompts: how a text-generation task reads prompts; None for other kinds.
        waiting: texts that wait for their turn.
        requests: for work on it that the server has answered since it started, well or not.
        layers: for each layer, how many of the task's pages are resident and how many there are.
    """

    name: str
    kind: str
    prompts: Literal["plain", "chat"] | None = None
    available: bool = True
    resident: float
    waiting: int
    requests: int
    layers: list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class BundleStatus:
    """One of several bundles.

    Attributes:
        awake: whether it has anything in memory.
        share: bytes of the budget that it has.
        used: bytes of them that are taken.
        bytes_read: since the server started.
    """

    name: str
    awake: bool
    share: int
    used: int
    bytes_read: int


@dataclass(frozen=True, kw_only=True)
class SwitchStatus:
    """One switch; ``time`` is in seconds since 1970."""

    time: float
    from_task: str | None
    to_task: str
    bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class TrafficStatus:
    """Requests for work in the last minute.

    Attributes:
        seconds: that are covered; less than a minute if the server is younger or very busy.
        requests: that were answered in them.
        median_seconds, p95_seconds: from a request to the end of its answer, over those that succeeded; None if none
            did.
        errors: how many failed, by HTTP status; 499 counts clients that went away.
    """

    seconds: float
    requests: int
    median_seconds: float | None
    p95_seconds: float | None
    errors: dict[int, int]


@dataclass(frozen=True, kw_only=True)
class ForecastStatus:
    """Which task comes next, as far as the past tells.

    Attributes:
        next: probability of each task to be the next one, in the order of ``tasks``; all 0 while no task is current.
        seconds: until the next switch; None if unknown.
        after: for each task, the probability of each other one to follow it, whatever came before.
        switches: that were forecast.
        foreseen: the share of them whose task was the likeliest one.
        log_loss_bits: their mean log loss.
    """

    next: list[float]
    seconds: float | None
    after: list[list[float]]
    switches: int
    foreseen: float
    log_loss_bits: float


@dataclass(frozen=True, kw_only=True)
class Status(EngineFigures):
    """The whole state: the engine's figures, and what the server knows.

    Attributes:
        state: whether requests are taken; ``stuck`` while one step or load keeps the worker too long.
        memory: bytes by purpose.
        process_bytes: memory of the whole process, that of the budget included; None where unknown.
        traffic: None from a server of an older version.
        bundles: of a server of several; what the engine's figures say is then of all together, and rows, features and
            prefixes aren't told.
        page_bytes: of a page; of several bundles the largest.
        pages: for each layer a digit per page, 1 for a resident one; None if there are too many pages, or bundles.
        prefetch: whether prefetching is ``active``, and pages by what it did; None if it is off.
        forecast: None before the first request.
        followed: how often each task followed each other one, in the order of ``tasks``.
    """

    version: str
    state: Literal["ready", "stuck", "stopping"]
    time: float
    uptime: float
    memory: dict[str, int]
    process_bytes: int | None = None
    traffic: TrafficStatus | None = None
    bundles: list[BundleStatus] | None = None
    page_bytes: int
    current: str | None
    running: int
    queue_limit: int
    tasks: list[TaskStatus]
    pages: list[str] | None
    prefetch: dict[str, bool | int] | None
    forecast: ForecastStatus | None
    switches_total: int
    switches: list[SwitchStatus]
    followed: list[list[int]]
