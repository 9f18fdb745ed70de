"""The routes by which vLLM's clients load and unload LoRA adapters; for the admin alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import Field

from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.garbage import collect
from weightpager.errors import ConfigError, RequestError, WeightpagerError
from weightpager.server.routes.admin_routes import AdminBody, conflicts, reloaded
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, admin
from weightpager.server.scheduling.served_bundle import ServedBundle
from weightpager.server.scheduling.service import Service
from weightpager.server.schema import Name, Text


class LoadBody(AdminBody):
    """An adapter on the server's disk. ``like`` is weightpager's own: the task whose blocks and settings it takes."""

    lora_name: Name
    lora_path: Annotated[Text, Field(min_length=1, max_length=4096, examples=["/srv/loras/german"])]
    like: Name | None = None


class UnloadBody(AdminBody):
    """An adapter's task."""

    lora_name: Name


router = APIRouter(prefix="/v1", tags=["adapters"], dependencies=[Depends(admin)], responses=RESPONSES)


@router.post("/load_lora_adapter", response_class=PlainTextResponse)
async def load_lora_adapter(body: LoadBody, service: Serving) -> str:
    """Add an adapter to the bundle as a task, and serve it. Where it has no room, the bundle stays as it was."""
    bundle = _bundle_for(service, body.like)
    path, like = bundle.bundle.path, None if body.like is None else bundle.short(service.task(body.like).name)
    async with bundle.changing:
        try:
            await asyncio.to_thread(add_task, path, Addition(body.lora_name, body.lora_path, like))
        except ConfigError as error:
            raise RequestError(str(error), code="invalid_adapter") from error
        try:
            await reloaded(service, bundle.name)
        except WeightpagerError:
            with suppress(WeightpagerError):  # the first error says more
                await asyncio.to_thread(collect, path, [body.lora_name])
            raise
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


def _bundle_for(service: Service, like: str | None) -> ServedBundle:
    """The bundle that an adapter is added to: that of the task that it is like, or the only one."""
    if like is not None:
        return service.bundle_of(like)[0]
    if len(service.bundles) > 1:
        raise RequestError("expected the task that it is like, which says the bundle, found none", "like")
    return next(iter(service.bundles.values()))


@router.post("/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_lora_adapter(body: UnloadBody, service: Serving) -> str:
    """Remove an adapter's task from the bundle, unless it is pinned."""
    bundle, task = service.bundle_of(body.lora_name)
    name = bundle.short(task.name)
    async with bundle.changing:
        if bundle.bundle.low_rank(name) is None:
            raise RequestError(f"expected a task with a LoRA adapter, found {name!r}, which has none", "lora_name")
        with conflicts():
            bundle.check_unpinned(name)
        await asyncio.to_thread(collect, bundle.bundle.path, [name])
        await reloaded(service, bundle.name)
    return f"Success: LoRA adapter '{name}' removed successfully."
