"""The server's state in one document: what the page at ``/`` and ``weightpager top`` show."""

from __future__ import annotations

import time
from typing import Literal

from weightpager.engine.report import PrefetchReport
from weightpager.engine.residency_map import ResidencyMap
from weightpager.server.schema import Answer
from weightpager.server.service import Service
from weightpager.server.version import VERSION

_MOST_PAGES = 8192
"""Above that, pages aren't listed one by one."""

_SWITCHES = 120


class TaskStatus(Answer):
    """One task; ``layers`` has for each layer how many of its pages are resident, and how many it needs."""

    name: str
    kind: str
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


class PrefetchStatus(Answer):
    """What loading ahead does: pages that it brought and their fate, and how well switches are foreseen."""

    active: bool
    loaded: int
    hits: int
    late: int
    misses: int
    wasted: int
    foreseen: float
    log_loss_bits: float


class Status(Answer):
    """All of it.

    Attributes:
        state: whether requests are taken.
        memory: bytes by purpose.
        pages: for each layer a digit per page, 1 where it is resident; None where there are too many.
        prefetch: None if nothing is loaded ahead.
        followed: how often each task was followed by each other, in the order of ``tasks``.
    """

    version: str
    state: Literal["ready", "stopping"]
    time: float
    uptime: float
    kernel: str
    direct_io: bool
    budget: int
    memory: dict[str, int]
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
    switches_total: int
    switches: list[SwitchStatus]
    followed: list[list[int]]


def status(service: Service) -> Status:
    """As of now; loads nothing."""
    engine = service.engine
    report, found, waiting = engine.report(), engine.residency(), service.queue.waiting()
    use, monitor, names = report.memory, engine.monitor, list(found.needs)
    return Status(
        version=VERSION,
        state="ready" if service.ready else "stopping",
        time=time.time(),
        uptime=time.time() - service.started,
        kernel=report.kernel,
        direct_io=report.direct_io,
        budget=report.budget,
        memory={name: getattr(use, name) for name in ("arena", "resident", "private", "tables", "kv_reserve")},
        page_bytes=engine.bundle.page_bytes,
        slots=report.slots,
        resident_pages=report.resident_pages,
        working_set_pages=report.working_set_pages,
        bytes_read=report.bytes_read,
        current=monitor.current,
        running=service.worker.running,
        queue_limit=service.queue.limit,
        tasks=[_task(service, found, name, waiting.get(name, 0)) for name in names],
        pages=_pages(found),
        prefetch=None if report.prefetch is None else _prefetch(report.prefetch),
        switches_total=monitor.switches,
        switches=[SwitchStatus(**vars(switch)) for switch in service.timeline.latest(_SWITCHES)],
        followed=monitor.followed(names).tolist(),
    )


def _prefetch(report: PrefetchReport) -> PrefetchStatus:
    counts = report.pages
    return PrefetchStatus(
        active=report.pays,
        loaded=counts.loaded,
        hits=counts.hits,
        late=counts.late,
        misses=counts.misses,
        wasted=counts.wasted,
        foreseen=report.hit_rate,
        log_loss_bits=report.log_loss,
    )


def _task(service: Service, found: ResidencyMap, name: str, waiting: int) -> TaskStatus:
    return TaskStatus(
        name=name,
        kind=service.task(name).kind,
        resident=found.share(name),
        waiting=waiting,
        requests=service.engine.monitor.requests.get(name, 0),
        layers=[(int(here), int(need)) for here, need in found.by_layer(name)],
    )


def _pages(found: ResidencyMap) -> list[str] | None:
    if len(found.layers) > _MOST_PAGES:
        return None
    count = int(found.layers.max(initial=-1)) + 1
    return ["".join("1" if here else "0" for here in found.resident[found.layers == layer]) for layer in range(count)]
