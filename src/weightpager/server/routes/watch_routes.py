"""Looking on: health, metrics, the state, and the page that shows it. None of these loads anything."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from weightpager.server.http import access
from weightpager.server.http.errors import RESPONSES
from weightpager.server.scheduling.service import Service
from weightpager.server.statistics.status import status as read_status
from weightpager.server.statistics.status_schema import Status

router = APIRouter(tags=["watching"])
_GUARDED = [Depends(access.user)]
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


@router.get("/health")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "Requests are not taken."}})
async def ready(request: Request) -> JSONResponse:
    """Whether requests are taken."""
    service: Service = request.app.state.service
    return JSONResponse({"status": "ready"}) if service.ready else JSONResponse({"status": "not ready"}, 503)


@router.get("/metrics", dependencies=_GUARDED, responses=RESPONSES, response_class=Response)
async def metrics(request: Request) -> Response:
    """For Prometheus."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


@router.get("/status", dependencies=_GUARDED, responses=RESPONSES)
def status(request: Request) -> Status:
    """The server's state, as the page and ``weightpager top`` show it."""
    # Not async: a long history takes a moment to learn from, and nobody else should wait for that.
    return read_status(request.app.state.service)


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
