"""Routes that only look: health, metrics, the state, and the page that shows it. None of them loads anything."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from importlib.resources import files

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from weightpager import __version__
from weightpager.bundle import TaskEntry
from weightpager.engine.prefetching import ForecastReport
from weightpager.engine.report import EngineFigures, ResidencyMap
from weightpager.machine.memory import resident_memory
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, user
from weightpager.server.scheduling.service import Service
from weightpager.server.status import ForecastStatus, Status, TaskStatus

_MOST_PAGES = 8192
"""If there are more pages than this, they aren't listed one by one."""


def status_of(service: Service) -> Status:
    """The state as of now; nothing is loaded for it."""
    engine = service.engine
    report, residency, waiting = engine.report(), engine.residency(), service.queue.waiting()
    requests, forecast, fetched = service.metrics.requests(), engine.forecast(), report.prefetch
    known = engine.bundle.tasks
    # A reload may come between any two: only tasks that are in all of them are shown.
    fits = service.fitting(name for name in residency.needs if name in known)
    monitor, names = engine.monitor, list(fits)
    return Status(
        **{figure.name: getattr(report, figure.name) for figure in fields(EngineFigures)},
        version=__version__,
        state="ready" if service.ready else "stuck" if service.stuck else "stopping",
        time=time.time(),
        uptime=time.time() - service.started,
        memory=report.memory.by_purpose(),
        process_bytes=resident_memory(),
        traffic=service.metrics.traffic.recent(),
        page_bytes=engine.bundle.page_bytes,
        current=monitor.current,
        running=service.worker.running,
        queue_limit=service.queue.limit,
        tasks=[
            _task(known[name], residency, fits[name], waiting.get(name, 0), requests.get(name, 0)) for name in names
        ],
        pages=_pages(residency),
        prefetch=None if fetched is None else {"active": fetched.pays, **asdict(fetched.pages)},
        forecast=None if forecast is None else _forecast(forecast, names),
        switches_total=monitor.switches,
        switches=list(service.metrics.latest_switches),
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


router = APIRouter(tags=["watching"])
_GUARDED = [Depends(user)]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/health")
@router.head("/health", include_in_schema=False)  # as many proxies and monitors ask
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.head("/ready", include_in_schema=False)
@router.get("/ready", responses={503: {"description": "Requests are not taken."}})
async def ready(service: Serving) -> JSONResponse:
    """Whether requests are taken."""
    return JSONResponse({"status": "ready"}) if service.ready else JSONResponse({"status": "not ready"}, 503)


@router.get("/metrics", dependencies=_GUARDED, responses=RESPONSES, response_class=Response)
async def metrics(service: Serving) -> Response:
    """For Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/status", dependencies=_GUARDED, responses=RESPONSES)
def status(service: Serving) -> Status:
    """The server's state, as the page and ``weightpager top`` show it."""
    # Not async, so that it runs in a thread: learning from a long history takes a moment, and others shouldn't wait.
    return status_of(service)


@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def page() -> HTMLResponse:
    """The page."""
    return HTMLResponse(_html("page.html"), headers=_HEADERS)


@router.get("/docs", response_class=HTMLResponse, include_in_schema=False)
async def docs() -> HTMLResponse:
    """The routes, from the OpenAPI description."""
    return HTMLResponse(_html("routes.html"), headers=_HEADERS)


def _html(name: str) -> str:
    return files("weightpager.server.routes").joinpath(name).read_text(encoding="utf-8")
