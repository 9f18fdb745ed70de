"""The server's state in one document. The page at ``/`` and ``weightpager top`` show it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from weightpager import __version__
from weightpager.bundle import TaskEntry
from weightpager.engine.forecasts import ForecastReport
from weightpager.engine.report import ResidencyMap
from weightpager.machine.process_memory import resident_memory
from weightpager.server.scheduling.service import Service
from weightpager.server.schema.status import (
    ForecastStatus,
    PrefetchStatus,
    RowStatus,
    Status,
    SwitchStatus,
    TaskStatus,
)

_MOST_PAGES = 8192
"""If there are more pages than this, they aren't listed one by one."""


def status(service: Service) -> Status:
    """The state as of now; nothing is loaded for it."""
    engine = service.engine
    report, residency, waiting = engine.report(), engine.residency(), service.queue.waiting()
    requests, forecast, fetched = service.metrics.requests(), engine.forecast(), report.prefetch
    known = engine.bundle.tasks
    # A reload may come between any two: only tasks that are in all of them are shown.
    fits = service.fitting(name for name in residency.needs if name in known)
    monitor, names = engine.monitor, list(fits)
    return Status(
        version=__version__,
        state="ready" if service.ready else "stuck" if service.stuck else "stopping",
        time=time.time(),
        uptime=time.time() - service.started,
        backend=report.backend,
        kernel=report.kernel,
        direct_io=report.direct_io,
        budget=report.budget,
        memory=asdict(report.memory),
        process_bytes=resident_memory(),
        traffic=service.metrics.traffic.recent(),
        page_bytes=engine.bundle.page_bytes,
        slots=report.slots,
        resident_pages=report.resident_pages,
        working_set_pages=report.working_set_pages,
        bytes_read=report.bytes_read,
        current=monitor.current,
        running=service.worker.running,
        queue_limit=service.queue.limit,
        tasks=[
            _task(known[name], residency, fits[name], waiting.get(name, 0), requests.get(name, 0)) for name in names
        ],
        pages=_pages(residency),
        prefetch=None if fetched is None else PrefetchStatus(active=fetched.pays, **vars(fetched.pages)),
        rows=None if report.rows is None else RowStatus(**vars(report.rows)),
        forecast=None if forecast is None else _forecast(forecast, names),
        switches_total=monitor.switches,
        switches=[SwitchStatus(time=at, **vars(switch)) for at, switch in list(service.metrics.latest_switches)],
        followed=monitor.followed(names).tolist(),
    )


def _forecast(report: ForecastReport, names: Sequence[str]) -> ForecastStatus:
    return ForecastStatus(
        next=_in_order(report.next, names),
        seconds=report.seconds,
        after=[_in_order(report.after.get(name, {}), names) for name in names],
        switches=report.switches,
        foreseen=report.hit_rate,
        log_loss_bits=report.log_loss,
    )


def _in_order(chances: Mapping[str, float], names: Sequence[str]) -> list[float]:
    # A task may have come since the forecast was made.
    return [round(chances.get(name, 0.0), 4) for name in names]


def _task(task: TaskEntry, residency: ResidencyMap, available: bool, waiting: int, requests: int) -> TaskStatus:
    name = task.name
    return TaskStatus(
        name=name,
        kind=task.kind,
        prompts=None if task.generation is None else task.generation.prompts,
        available=available,
        resident=residency.share(name),
        waiting=waiting,
        requests=requests,
        layers=[(int(here), int(need)) for here, need in residency.by_layer(name)],
    )


def _pages(residency: ResidencyMap) -> list[str] | None:
    if len(residency.layers) > _MOST_PAGES:
        return None
    count = int(residency.layers.max(initial=-1)) + 1
    return [
        "".join("1" if here else "0" for here in residency.resident[residency.layers == layer])
        for layer in range(count)
    ]
