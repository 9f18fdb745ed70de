"""Routes that only the admin may use. Changes wait for a moment between two steps, when no task is in use.

Prefetching doesn't wait, since it changes nothing for the tasks in use.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from weightpager.errors import BudgetError, BundleError, BusyError, ConflictError, RequestError, StoreError
from weightpager.server.routes.errors import RESPONSES
from weightpager.server.routes.exchange import Serving, admin
from weightpager.server.scheduling.service import Service
from weightpager.server.schema import Answer, Body, Name, Text


class AdminBody(Body):
    """A request of the admin. Unknown fields are refused here."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskBody(AdminBody):
    """One task."""

    task: Name


class BudgetBody(AdminBody):
    """A new budget."""

    budget: Annotated[Text, Field(max_length=32, examples=["64MiB"])]


class Loaded(Answer):
    """A task, and the bytes that were read to load it."""

    task: str
    loaded_bytes: int


class Queued(Answer):
    """A task, and the bytes that will be read for it."""

    task: str
    queued_bytes: int


class BudgetAnswer(Answer):
    """The budget in force."""

    budget_bytes: int


class Reloaded(Answer):
    """Names of the tasks that have changed in the bundle."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class Verified(Answer):
    """How many pages were compared, and the numbers of those whose bytes are wrong."""

    resident_pages: int
    damaged: list[int]


router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(admin)], responses=RESPONSES)
_Result = TypeVar("_Result")


@router.post("/load")
async def load(body: TaskBody, service: Serving) -> Loaded:
    """Switch to a task, so that its pages are there when it is asked for."""
    service.task(body.task)
    return await _loading(service, body.task, lambda: service.worker.enter(body.task))


@router.post("/pin")
async def pin(body: TaskBody, service: Serving) -> Loaded:
    """Load a task, and keep its pages until it has been unpinned as often as it was pinned."""
    service.task(body.task)
    return await _loading(service, body.task, lambda: service.engine.pin(body.task))


@router.post("/unpin")
async def unpin(body: TaskBody, service: Serving) -> Loaded:
    """Undo one pin."""
    service.task(body.task)
    return await _loading(service, body.task, lambda: service.engine.unpin(body.task))


@router.post("/prefetch")
async def prefetch(body: TaskBody, service: Serving) -> Queued:
    """Begin to load a task into memory that no task in use needs. Loads that a request waits for go first."""
    service.task(body.task)
    with conflicts():
        pages = await asyncio.to_thread(service.engine.prefetch, body.task)
    return Queued(task=body.task, queued_bytes=pages * service.engine.bundle.page_bytes)


@router.post("/budget")
async def budget(body: BudgetBody, service: Serving) -> BudgetAnswer:
    """Use more or less memory from now on."""
    await _between(service, lambda: service.set_budget(body.budget))
    return BudgetAnswer(budget_bytes=service.engine.budget)


@router.post("/reload")
async def reload(service: Serving) -> Reloaded:
    """Take over changes of the bundle on disk: tasks that were added, removed or compiled anew."""
    try:
        change = await _between(service, service.reload)
    except (BundleError, StoreError, RequestError) as error:  # the admin can mend what lies there, or unpin a task
        code = error.code if isinstance(error, RequestError) else "bundle"
        raise ConflictError(f"the server goes on with the bundle that it has: {error}", code=code) from error
    return Reloaded(added=list(change.added), removed=list(change.removed), changed=list(change.changed))


@router.post("/verify")
async def verify(service: Serving) -> Verified:
    """Compare every page in memory with its hash; requests go on meanwhile."""
    damaged = await asyncio.to_thread(service.engine.verify)
    return Verified(resident_pages=service.engine.report().resident_pages, damaged=damaged)


@router.get("/trace", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
async def trace(service: Serving) -> Response:
    """Which task was visited when, as ``transitions:`` of a task file reads it."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in service.engine.monitor.trace())
    return Response(content, media_type="application/jsonl")


async def _loading(service: Service, task: str, act: Callable[[], object]) -> Loaded:
    def counted() -> int:
        before = service.engine.report().bytes_read
        act()
        return service.engine.report().bytes_read - before

    return Loaded(task=task, loaded_bytes=await _between(service, counted))


async def _between(service: Service, act: Callable[[], _Result]) -> _Result:
    with conflicts():
        return await asyncio.wrap_future(service.worker.between(act))


@contextmanager
def conflicts() -> Iterator[None]:
    """Say that there is no room as a wrong request: unlike a user, the admin gains nothing by asking again."""
    try:
        yield
    except (BudgetError, BusyError) as error:
        raise RequestError(str(error), code="conflict") from error
