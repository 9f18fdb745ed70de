"""The ASGI application: routes, and what stands around them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute

from weightpager import __version__
from weightpager.engine import Engine
from weightpager.errors import ServerClosedError, WeightpagerError
from weightpager.server.middleware import BODY_SECONDS, BodyLimit, RequestLog
from weightpager.server.routes import (
    adapter_routes,
    admin_routes,
    encoding_routes,
    errors,
    generation_routes,
    watch_routes,
)
from weightpager.server.routes.exchange import allowed
from weightpager.server.scheduling.service import Service

_log = logging.getLogger(__name__)


def create_app(service: Service) -> FastAPI:
    """An application that serves a service: starts it when it starts, closes it when it ends."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        resting = asyncio.create_task(_rest(service))
        try:
            yield
        finally:
            resting.cancel()
            service.close()

    app = FastAPI(
        title="weightpager",
        version=__version__,
        description="One model, many sparse tasks, one memory budget. The task is the `model` of OpenAI's routes.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's own page asks other machines for its scripts
        redoc_url=None,
    )
    rooms = (encoding_routes, generation_routes, adapter_routes, admin_routes, watch_routes)
    routers = [of.router for of in rooms]
    app.state.service = service
    app.state.routes = {
        route.path: " or ".join(sorted(route.methods or ()))
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
    }
    errors.register(app, service.retry_after())
    for router in routers:
        app.include_router(router)
    settings = service.settings
    app.add_middleware(
        BodyLimit,
        most=service.body_bytes,
        seconds=BODY_SECONDS,
        usual=settings.body_bytes,
        may=partial(allowed, settings=settings),
    )
    app.add_middleware(RequestLog, metrics=service.metrics)
    return app


_TICK = 1.0
"""Seconds between two looks for what is idle and for what has changed in the folder of bundles."""


async def _rest(service: Service) -> None:
    """Have the worker see to what sleeps, comes and goes, as long as the server runs."""
    if isinstance(service.runs, Engine):
        return
    while True:
        await asyncio.sleep(_TICK)
        try:
            if await asyncio.to_thread(service.folder_has_changed):
                await asyncio.wrap_future(service.worker.between(service.follow_folder))
            await asyncio.wrap_future(service.worker.soon(service.rest))
        except ServerClosedError:
            return
        except WeightpagerError:
            _log.exception("what is idle, or has changed in the folder of bundles, couldn't be seen to")
