"""Bodies of the admin's routes."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from weightpager.server.schema.common import Answer, Body, Name, Text


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
