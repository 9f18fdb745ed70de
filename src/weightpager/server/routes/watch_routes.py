"""Routes that only look: health, metrics, the state, and the page that shows it. None of them loads anything."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from weightpager import __version__
from weightpager.bundle import TaskEntry
from weightpager.engine import Engine, Models
from weightpager.engine.forecasts import ForecastReport
from weightpager.engine.report import EngineFigures, EngineReport, ResidencyMap
from weightpager.engine.shared_bundle import SharedBundle
from weightpager.kernels import isa
from weightpager.machine.memory import resident_memory
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, user
from weightpager.server.scheduling.service import Service
from weightpager.server.status import BundleStatus, ForecastStatus, Status, TaskStatus

_MOST_PAGES = 8192
"""If there are more pages than this, they aren't listed one by one."""

Layers = list[tuple[int, int]]
"""For each layer, how many of a task's pages are resident and how many there are."""


def status_of(service: Service) -> Status:
    """The state as of now; nothing is loaded for it."""
    runs, monitor, metrics = service.runs, service.runs.monitor, service.metrics
    owners = {name: bundle for bundle in service.bundles.values() for name in bundle.tasks}
    known, waiting, requests = service.tasks, service.queue.waiting(), metrics.requests()
    seen = _one_engine(runs) if isinstance(runs, Engine) else _several(service, runs)
    # A reload may come between any two: only tasks that are in all of them are shown.
    fits = service.fitting(name for name in seen.tasks if name in known and name in owners)
    names, asked = list(fits), [owners[name].whole(name) for name in fits]
    return Status(
        **seen.figures,
        version=__version__,
        state="ready" if service.ready else "stuck" if service.stuck else "stopping",
        time=time.time(),
        uptime=time.time() - service.started,
        memory=seen.memory,
        process_bytes=resident_memory(),
        traffic=metrics.traffic.recent(),
        bundles=seen.bundles,
        page_bytes=max(bundle.bundle.page_bytes for bundle in service.bundles.values()),
        current=service.current,
        running=service.worker.running,
        queue_limit=service.queue.limit,
        tasks=[
            _task(known[name], *seen.tasks[name], fits[name], waiting.get(name, 0), requests.get(name, 0))
            for name in names
        ],
        pages=seen.pages,
        prefetch=seen.prefetch,
        forecast=None if seen.forecast is None else _forecast(seen.forecast, names),
        switches_total=monitor.switches,
        switches=list(metrics.latest_switches),
        followed=monitor.followed(asked).tolist(),
    )


@dataclass(frozen=True)
class _Seen:
    """What is seen of whoever runs tasks.

    Attributes:
        figures: those of `EngineFigures`, by name.
        memory: bytes by purpose.
        tasks: for each task, by the name that clients know, how much of it is in memory, and its pages by layer.
    """

    figures: Mapping[str, Any]
    memory: dict[str, int]
    tasks: Mapping[str, tuple[float, Layers]]
    pages: list[str] | None = None
    prefetch: dict[str, bool | int] | None = None
    forecast: ForecastReport | None = None
    bundles: list[BundleStatus] | None = None


def _one_engine(engine: Engine) -> _Seen:
    report, residency = engine.report(), engine.residency()
    fetched = report.prefetch
    return _Seen(
        _figures(report),
        report.memory.by_purpose(),
        _layers(residency),
        _pages(residency),
        None if fetched is None else {"active": fetched.pays, **asdict(fetched.pages)},
        engine.forecast(),
    )


def _several(service: Service, models: Models) -> _Seen:
    reports = {name: report for name, each in models.bundles.items() if (report := each.report()) is not None}
    memory: Counter[str] = Counter()
    for report in reports.values():
        memory.update(report.memory.by_purpose())
    tasks: dict[str, tuple[float, Layers]] = {}
    for served in service.bundles.values():
        residency = served.residency()
        layers = {} if residency is None else _layers(residency)
        tasks |= {name: layers.get(served.short(name), (0.0, [])) for name in served.tasks}
    together = ("slots", "resident_pages", "working_set_pages")
    figures = {name: sum(getattr(report, name) for report in reports.values()) for name in together}
    any_report = next(iter(reports.values()), None)
    return _Seen(
        {
            **figures,
            "budget": models.budget,
            "bytes_read": service.bytes_read,
            "direct_io": all(report.direct_io for report in reports.values()),
            "backend": "none" if any_report is None else any_report.backend,
            "kernel": isa(),
        },
        dict(memory),
        tasks,
        bundles=[_bundle(bundle, reports.get(name)) for name, bundle in models.bundles.items()],
    )


def _figures(report: EngineReport) -> dict[str, Any]:
    return {figure.name: getattr(report, figure.name) for figure in fields(EngineFigures)}


def _bundle(bundle: SharedBundle, report: EngineReport | None) -> BundleStatus:
    return BundleStatus(
        name=bundle.name,
        awake=report is not None,
        share=bundle.share,
        used=0 if report is None else report.memory.total,
        bytes_read=bundle.bytes_read,
    )


def _layers(residency: ResidencyMap) -> dict[str, tuple[float, Layers]]:
    return {
        name: (residency.share(name), [(int(here), int(need)) for here, need in residency.by_layer(name)])
        for name in residency.needs
    }


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


def _task(task: TaskEntry, resident: float, layers: Layers, available: bool, waiting: int, requests: int) -> TaskStatus:
    return TaskStatus(
        name=task.name,
        kind=task.kind,
        prompts=None if task.generation is None else task.generation.prompts,
        available=available,
        resident=resident,
        waiting=waiting,
        requests=requests,
        layers=layers,
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
