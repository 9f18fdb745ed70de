"""``ps``: the running servers of this user."""

from __future__ import annotations

import time
from typing import Any

from weightpager.cli import output
from weightpager.cli.options import Json, TokenFile
from weightpager.cli.serving.top_command import read_status
from weightpager.errors import WeightpagerError
from weightpager.server.http.presence import Presence, running

_SECONDS = 3.0
"""Seconds that a server may take to answer."""


def ps(
    token_file: TokenFile = None,
    json: Json = False,
) -> None:
    """List the servers of this user that run: where they listen, their budget and current task. Loads nothing.

    Example: `weightpager ps`
    """
    from weightpager.server.scheduling.settings import read_token

    token = read_token(token_file)
    try:
        found = [_facts(presence, token) for presence in running()]
    except OSError as error:
        raise WeightpagerError(str(error)) from error
    if json:
        output.print_json(found)
    elif not found:
        output.say("no server of this user runs here")
        output.next_step("weightpager serve BUNDLE --budget SIZE")
    else:
        _print(found)


def _facts(presence: Presence, token: str | None) -> dict[str, Any]:
    """What a server says of itself, or why it says nothing."""
    facts: dict[str, Any] = presence.model_dump() | dict.fromkeys(("budget", "memory", "current", "waiting", "problem"))
    try:
        state = read_status(presence.url, token, timeout=_SECONDS)
        return facts | {
            "budget": state.budget,
            "memory": sum(state.memory.values()),
            "current": state.current,
            "waiting": sum(task.waiting for task in state.tasks),
        }
    except WeightpagerError as error:
        return facts | {"problem": str(error)}


def _print(found: list[dict[str, Any]]) -> None:
    output.table(
        "servers",
        ["listens at", "process", "bundle", "budget", "in memory", "current task", "waiting", "up"],
        [
            [
                facts["url"],
                facts["pid"],
                facts["bundle"],
                *("-" if facts[key] is None else output.size(facts[key]) for key in ("budget", "memory")),
                facts["current"] or "-",
                "-" if facts["waiting"] is None else facts["waiting"],
                f"{max(0.0, time.time() - facts['started']):.0f} s",
            ]
            for facts in found
        ],
    )
    for facts in found:
        if facts["problem"] is not None:
            output.errors().print(facts["problem"], style="red")
