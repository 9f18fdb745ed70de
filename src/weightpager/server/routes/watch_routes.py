"""Routes that only look: health, metrics, the state, and the page that shows it. None of them loads anything."""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Depends
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from weightpager.server.routes.access import Serving, user
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.status import status as read_status
from weightpager.server.schema.status import Status

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
    return read_status(service)


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
