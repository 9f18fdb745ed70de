"""Bodies of the admin's routes."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from weightpager.server.schema.common import Answer, Body, Name, Text


class AdminBody(Body):
    """What an admin asks; unlike elsewhere, unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TaskBody(AdminBody):
    """One task."""

    task: Name


class BudgetBody(AdminBody):
    """A new budget."""

    budget: Annotated[Text, Field(max_length=32, examples=["64MiB"])]


class Loaded(Answer):
    """A task, and the bytes that its loading read."""

    task: str
    loaded_bytes: int


class Queued(Answer):
    """A task, and the bytes that are to be read for it."""

    task: str
    queued_bytes: int


class BudgetAnswer(Answer):
    """The budget in force."""

    budget_bytes: int


class Reloaded(Answer):
    """What has changed in the bundle."""

    added: list[str]
    removed: list[str]
    changed: list[str]


class Verified(Answer):
    """Numbers of resident pages whose bytes are wrong."""

    resident_pages: int
    damaged: list[int]
