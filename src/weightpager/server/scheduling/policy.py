"""What requests are grouped by, and the bound on waiting that follows from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from weightpager.answers.generation.forward_size import Activations
from weightpager.errors import ConfigError


@dataclass(frozen=True)
class Policy:
    """What requests are grouped by.

    Attributes:
        patience: seconds after which a waiting task is overdue.
        linger: seconds that a switch which must load waits for more requests of its task, at most as long as
            ``patience``; a full batch doesn't wait.
        turn: requests after which an overdue task may interrupt the current one.
        turn_seconds: or after which time.
        step: seconds after which work that takes many forwards lets others have one.
        batch: requests that run together; 1 makes answers independent of who else asks, bit for bit.
        runs: batches of a task that may be under way at a time, unless a request has lost its patience.
        room: tokens that caches may hold together: for each text the longest prompt of its batch and as many more as
            any of the batch may have. None for any number.
        context: tokens that the model can read; the longest prompt of all and as many more as any may have are no
            more, since what is finished is fed padding until all are. None for any number.
        together: the same where a prompt isn't longer than this: more tokens would change how it is read. None for
            as many as ``context``.
        activations: what a forward takes; batches that are read at once are kept within what one may. None for any.
        order: ``grouped`` by task, or by ``arrival``, which is what grouping is measured against.
    """

    patience: float = 2.0
    linger: float = 0.0
    turn: int = 32
    turn_seconds: float = 2.0
    step: float = 0.25
    batch: int = 8
    runs: int = 2
    room: int | None = None
    context: int | None = None
    together: int | None = None
    activations: Activations | None = None
    order: Literal["grouped", "arrival"] = "grouped"

    def __post_init__(self) -> None:
        for name in ("patience", "linger", "turn_seconds", "step"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name}: expected a number of seconds, got {getattr(self, name)}")
        for name in ("turn", "batch", "runs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.order not in ("grouped", "arrival"):
            raise ConfigError(f"order: expected 'grouped' or 'arrival', got {self.order!r}")

    def longest_wait(self, tasks: int, step_seconds: float, switch_seconds: float, ahead: int = 0) -> float:
        """Seconds after which a request of one of so many tasks has begun, however many others there are.

        Args:
            tasks: that are asked for.
            step_seconds: of the longest step: a batch that is read at once, or as much as `step` and one more forward.
            switch_seconds: of the longest switch.
            ahead: requests and batches under way of its own task that were there before it.
        """
        others = (tasks - 1) * (self.turn_seconds + step_seconds) + tasks * switch_seconds
        spent = ahead * step_seconds / self.turn_seconds if self.turn_seconds else ahead
        turns = 1 + math.floor(min(ahead, max(spent, ahead / self.turn)))
        # One step is under way, which may have switched, when the request comes; then there are rounds of the tasks.
        return self.patience + switch_seconds + (1 + ahead) * step_seconds + turns * others
