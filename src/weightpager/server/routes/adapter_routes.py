"""The routes by which vLLM's clients load and unload LoRA adapters; for the admin alone."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from pydantic import Field

from weightpager.bundle.adapter import has_low_rank
from weightpager.bundle.addition import Addition, add_task
from weightpager.bundle.garbage import collect
from weightpager.errors import ConfigError, RequestError, WeightpagerError
from weightpager.server.routes.admin_routes import AdminBody, conflicts, reload
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, admin
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
    path = service.engine.bundle.path
    async with service.changing:
        try:
            await asyncio.to_thread(add_task, path, Addition(body.lora_name, body.lora_path, body.like))
        except ConfigError as error:
            raise RequestError(str(error), code="invalid_adapter") from error
        try:
            await reload(service)
        except WeightpagerError:
            with suppress(WeightpagerError):  # the first error says more
                await asyncio.to_thread(collect, path, [body.lora_name])
            raise
    return f"Success: LoRA adapter '{body.lora_name}' added successfully."


@router.post("/unload_lora_adapter", response_class=PlainTextResponse)
async def unload_lora_adapter(body: UnloadBody, service: Serving) -> str:
    """Remove an adapter's task from the bundle, unless it is pinned."""
    async with service.changing:
        bundle, name = service.engine.bundle, service.task(body.lora_name).name
        if not has_low_rank(bundle, name):
            raise RequestError(f"expected a task with a LoRA adapter, found {name!r}, which has none", "lora_name")
        with conflicts():
            service.engine.check_unpinned(name)
        await asyncio.to_thread(collect, bundle.path, [name])
        await reload(service)
    return f"Success: LoRA adapter '{name}' removed successfully."
