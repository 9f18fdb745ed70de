"""``ps``: the running servers of this user."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightpager.cli import output
from weightpager.cli.commands.top import read_status
from weightpager.cli.options import Json, TokenFile
from weightpager.errors import WeightpagerError
from weightpager.server.presence import Presence, running

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
        servers = [_ask(presence, token) for presence in running()]
    except OSError as error:
        raise WeightpagerError(str(error)) from error
    if json:
        output.print_json([server.plain() for server in servers])
    elif not servers:
        output.say("no server of this user runs here")
        output.next_step("weightpager serve BUNDLE --budget SIZE")
    else:
        _print(servers)


@dataclass(frozen=True)
class _AskedServer:
    """What a running server says of itself; ``problem`` says why it says nothing."""

    presence: Presence
    budget: int | None = None
    memory: int | None = None
    current: str | None = None
    waiting: int | None = None
    problem: str | None = None

    def plain(self) -> dict[str, Any]:
        """For JSON: the fields of its presence, then the others."""
        others = {name: value for name, value in vars(self).items() if name != "presence"}
        return self.presence.model_dump() | others

    def cells(self) -> list[object]:
        """The server's row in the table."""
        return [
            self.presence.url,
            self.presence.pid,
            self.presence.bundle,
            *("-" if size is None else output.size(size) for size in (self.budget, self.memory)),
            self.current or "-",
            "-" if self.waiting is None else self.waiting,
            f"{max(0.0, time.time() - self.presence.started):.0f} s",
        ]


def _ask(presence: Presence, token: str | None) -> _AskedServer:
    try:
        state = read_status(presence.url, token, timeout=_SECONDS)
    except WeightpagerError as error:
        return _AskedServer(presence, problem=str(error))
    return _AskedServer(
        presence,
        budget=state.budget,
        memory=sum(state.memory.values()),
        current=state.current,
        waiting=sum(task.waiting for task in state.tasks),
    )


def _print(servers: Sequence[_AskedServer]) -> None:
    output.table(
        "servers",
        ["listens at", "process", "bundle", "budget", "in memory", "current task", "waiting", "up"],
        [server.cells() for server in servers],
    )
    for server in servers:
        if server.problem is not None:
            output.errors().print(server.problem, style="red")
