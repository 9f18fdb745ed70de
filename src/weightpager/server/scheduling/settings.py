"""A server's settings. They are parsed once and frozen; contradictory ones are refused."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from weightpager.answers.model import Activations, CacheSize
from weightpager.config import LONGEST
from weightpager.errors import ConfigError
from weightpager.server.inputs.picture_hosts import AllowedHost


@dataclass(frozen=True)
class BatchLimits:
    """What a bundle's model and caches allow of a batch.

    Attributes:
        bundle: whose caches share the room.
        room: tokens that all caches of the bundle may hold together; None for any number. A batch holds, for each of
            its texts, as many tokens as its longest prompt and its longest continuation have, in whole blocks.
        cache: what caches take, which states the blocks.
        context: tokens that the model can read; None for any number. A batch's longest prompt and longest continuation
            fit into it together, because a text that has ended is fed padding until all have.
        uniform_length: the limit instead of ``context`` for batches whose prompts aren't longer than this: more tokens
            would change how these are read. None where there is no such limit.
        activations: memory that a forward takes, which bounds batches that are read at once; None for no bound.
    """

    bundle: str = ""
    room: int | None = None
    cache: CacheSize = field(default_factory=CacheSize)
    context: int | None = None
    uniform_length: int | None = None
    activations: Activations | None = None


NO_LIMITS = BatchLimits()


@dataclass(frozen=True)
class Policy:
    """How requests are grouped.

    Attributes:
        patience: seconds after which a waiting task is overdue.
        linger: seconds that a switch that has to load pages waits for more requests of its task. It waits no longer
            than ``patience``, and a full batch doesn't wait.
        turn: requests after which an overdue task may interrupt the current one.
        turn_seconds: seconds after which it may, too.
        step: seconds after which work of many forwards lets other work have a step; behind a heavy prompt also that
            of other tasks.
        batch: requests that run together, at most; with 1, answers don't depend on other requests, bit for bit.
        runs: batches of a task that may be under way at a time; a request that has lost its patience may exceed it.
        order: ``grouped`` by task; or by ``arrival``, to measure what grouping gains.
    """

    patience: float = 2.0
    linger: float = 0.0
    turn: int = 32
    turn_seconds: float = 2.0
    step: float = 0.25
    batch: int = 8
    runs: int = 2
    order: Literal["grouped", "arrival"] = "grouped"

    def __post_init__(self) -> None:
        for name in ("patience", "linger", "turn_seconds", "step"):
            if not 0 <= getattr(self, name) <= LONGEST:
                raise ConfigError(
                    f"{name}: expected a number of seconds from 0 to {LONGEST:g}, got {getattr(self, name)}"
                )
        for name in ("turn", "batch", "runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.order not in ("grouped", "arrival"):
            raise ConfigError(f"order: expected 'grouped' or 'arrival', got {self.order!r}")

    @property
    def hurried(self) -> Policy:
        """The policy beside a heavy prompt: others have a turn between its steps, however long it takes in all."""
        return replace(self, patience=min(self.patience, self.step), turn_seconds=min(self.turn_seconds, self.step))

    def longest_wait(
        self, tasks: int, step_seconds: float, switch_seconds: float, ahead: int = 0, *, heavy: bool = False
    ) -> float:
        """Seconds within which a request begins, however many requests other tasks have.

        Args:
            tasks: how many are asked for.
            step_seconds: of the longest step: a batch that is read at once, or ``step`` and one more forward.
            switch_seconds: of the longest switch.
            ahead: requests and batches under way of its own task that came before it.
            heavy: whether heavy prompts may be there, beside which each of those may need a turn of its own.
        """
        others = self._turns_of_others(tasks, step_seconds, switch_seconds)
        spent = ahead * step_seconds / self.turn_seconds if self.turn_seconds else ahead
        turns = 1 + math.floor(min(ahead, max(spent, ahead / self.turn)))
        # When the request comes, one step is under way, and may just have switched. Then the tasks have their turns.
        more = ahead * self.hurried._turns_of_others(tasks, step_seconds, switch_seconds) if heavy else 0.0
        return self.patience + switch_seconds + (1 + ahead) * step_seconds + turns * others + more

    def _turns_of_others(self, tasks: int, step_seconds: float, switch_seconds: float) -> float:
        return (tasks - 1) * (self.turn_seconds + step_seconds) + tasks * switch_seconds


_MAKE_ONE = "'(umask 077; openssl rand -hex 32 > FILE)' makes one"


@dataclass(frozen=True)
class Settings:
    """A server's settings.

    Attributes:
        timeout: seconds after which a request is given up, whether it waits or runs.
        grace: seconds that requests have to finish once the server is told to end.
        most_text_tokens: that a text may have; None for what `default_limit` says.
        token: that requests must bring; None asks for none. Never printed.
        admin_token: that the admin's requests must bring; None makes no admin routes. Never printed.
        remote_admin: whether the admin may come from another machine.
        picture_hosts: from which pictures are fetched that requests name by their address.
    """

    policy: Policy = field(default_factory=Policy)
    queue: int = 256
    timeout: float = 120.0
    grace: float = 20.0
    most_new_tokens: int = 1024
    most_text_tokens: int | None = None
    body_bytes: int = 2**20
    token: str | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    remote_admin: bool = False
    picture_hosts: tuple[AllowedHost, ...] = ()

    def __post_init__(self) -> None:
        for name in ("queue", "most_new_tokens", "body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.most_text_tokens is not None and self.most_text_tokens < 1:
            raise ConfigError(f"most_text_tokens: expected 1 or more, got {self.most_text_tokens}")
        if not 0 < self.timeout <= LONGEST:
            raise ConfigError(f"timeout: expected a number of seconds over 0 and up to {LONGEST:g}, got {self.timeout}")
        if not 0 <= self.grace <= LONGEST:
            raise ConfigError(f"grace: expected a number of seconds from 0 to {LONGEST:g}, got {self.grace}")
        if self.token is not None and self.token == self.admin_token:
            raise ConfigError("tokens: expected two that differ, got the same for users and the admin")
        if self.remote_admin and self.admin_token is None:
            raise ConfigError("remote admin: expected an admin token, got none")


def read_token(path: Path | None) -> str | None:
    """The token in a file, without blanks around it; None if there is no path.

    Raises:
        ConfigError: there is no such file, or it holds no token of 16 to 512 printable ASCII characters.
    """
    if path is None:
        return None
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "characters that aren't ASCII"
        raise ConfigError(f"{path}: expected a readable file with a token, found: {found}; {_MAKE_ONE}") from error
    if not 16 <= len(text) <= 512 or not text.isprintable() or " " in text:
        raise ConfigError(
            f"{path}: expected a token of 16 to 512 characters without blanks, got {len(text)}; {_MAKE_ONE}"
        )
    return text
