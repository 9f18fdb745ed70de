"""Routes that only the admin may use. Changes wait for a moment between two steps, when no task is in use.

Prefetching doesn't wait, since it changes nothing for the tasks in use.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends
from fastapi.responses import Response
from pydantic import ConfigDict, Field

from weightpager.errors import BudgetError, BundleError, BusyError, ConfigError, ConflictError, RequestError, StoreError
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


class BundleBody(AdminBody):
    """One bundle, by its name; of a server of several."""

    bundle: Name


class PathBody(AdminBody):
    """A bundle's directory on the server's disk."""

    path: Annotated[Text, Field(min_length=1, max_length=4096, examples=["/srv/bundles/drive.bundle"])]


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
    """How many pages were compared, and the numbers of those whose bytes are wrong; of several bundles also by name."""

    resident_pages: int
    damaged: list[int]
    bundles: dict[str, list[int]] | None = None


class Bundles(Answer):
    """The bundles that are served, and whether each is in memory."""

    bundles: dict[str, bool]


router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(admin)], responses=RESPONSES)
_Result = TypeVar("_Result")


@router.post("/load")
async def load(body: TaskBody, service: Serving) -> Loaded:
    """Switch to a task, so that its pages are there when it is asked for."""
    name = service.task(body.task).name
    return await _loading(service, name, lambda: service.worker.enter(name))


@router.post("/pin")
async def pin(body: TaskBody, service: Serving) -> Loaded:
    """Load a task, and keep its pages until it has been unpinned as often as it was pinned."""
    name = service.task(body.task).name
    return await _loading(service, name, lambda: service.runs.pin(service.name_of(name)))


@router.post("/unpin")
async def unpin(body: TaskBody, service: Serving) -> Loaded:
    """Undo one pin."""
    name = service.task(body.task).name
    return await _loading(service, name, lambda: service.runs.unpin(service.name_of(name)))


@router.post("/prefetch")
async def prefetch(body: TaskBody, service: Serving) -> Queued:
    """Begin to load a task into memory that no task in use needs. Loads that a request waits for go first."""
    bundle, task = service.bundle_of(body.task)
    with conflicts():
        if not bundle.is_awake:
            raise BusyError(f"the bundle {bundle.name!r} sleeps; /admin/load wakes it")
        pages = await asyncio.to_thread(bundle.engine.prefetch, bundle.short(task.name))
    return Queued(task=task.name, queued_bytes=pages * bundle.bundle.page_bytes)


@router.post("/budget")
async def budget(body: BudgetBody, service: Serving) -> BudgetAnswer:
    """Use more or less memory from now on."""
    await _between(service, lambda: service.set_budget(body.budget))
    return BudgetAnswer(budget_bytes=service.runs.budget)


@router.post("/reload")
async def reload(service: Serving, body: BundleBody | None = None) -> Reloaded:
    """Take over changes of bundles on disk: tasks that were added, removed or compiled anew. Of all, or of the one."""
    names = list(service.bundles) if body is None else [service.named(body.bundle).name]
    found = Reloaded(added=[], removed=[], changed=[])
    for name in names:
        change = await reloaded(service, name)
        found = Reloaded(
            added=found.added + change.added,
            removed=found.removed + change.removed,
            changed=found.changed + change.changed,
        )
    return found


async def reloaded(service: Service, name: str) -> Reloaded:
    """Take over changes of one bundle."""
    bundle = service.bundles[name]
    try:
        change = await _between(service, lambda: service.reload(name))
    except (BundleError, StoreError, RequestError) as error:  # the admin can mend what lies there, or unpin a task
        code = error.code if isinstance(error, RequestError) else "bundle"
        raise ConflictError(f"the server goes on with the bundle that it has: {error}", code=code) from error
    added, removed, changed = (list(map(bundle.known, part)) for part in (change.added, change.removed, change.changed))
    return Reloaded(added=added, removed=removed, changed=changed)


@router.post("/add")
async def add(body: PathBody, service: Serving) -> Bundles:
    """Serve one more bundle under the budget of the others."""
    try:
        await _between(service, lambda: service.add(Path(body.path)))
    except (BundleError, StoreError, ConfigError) as error:
        raise RequestError(str(error), "path", "bundle") from error
    return _bundles(service)


@router.post("/remove")
async def remove(body: BundleBody, service: Serving) -> Bundles:
    """Serve a bundle no longer, unless it is in use."""
    name = service.named(body.bundle).name
    await _between(service, lambda: service.remove(name))
    return _bundles(service)


@router.post("/sleep")
async def sleep(body: BundleBody, service: Serving) -> Bundles:
    """Take all of a bundle out of memory, unless it is in use. It comes back with the next request to it."""
    name = service.named(body.bundle).name
    await _between(service, lambda: service.sleep(name))
    return _bundles(service)


def _bundles(service: Service) -> Bundles:
    return Bundles(bundles={name: bundle.is_awake for name, bundle in service.bundles.items()})


@router.post("/verify")
async def verify(service: Serving) -> Verified:
    """Compare every page in memory with its hash; requests go on meanwhile."""
    awake = {name: bundle.engine for name, bundle in service.bundles.items() if bundle.is_awake}
    damaged = {name: await asyncio.to_thread(engine.verify) for name, engine in awake.items()}
    return Verified(
        resident_pages=sum(engine.report().resident_pages for engine in awake.values()),
        damaged=[number for numbers in damaged.values() for number in numbers],
        bundles=None if "" in service.bundles else damaged,
    )


@router.get("/trace", response_class=Response, responses={200: {"content": {"application/jsonl": {}}}})
async def trace(service: Serving) -> Response:
    """Which task was visited when, as ``transitions:`` of a task file reads it."""
    content = b"".join(json.dumps(row).encode() + b"\n" for row in service.runs.monitor.trace())
    return Response(content, media_type="application/jsonl")


async def _loading(service: Service, task: str, act: Callable[[], object]) -> Loaded:
    def counted() -> int:
        before = service.bytes_read
        act()
        return service.bytes_read - before

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
