"""Which task runs next, and which of its requests together: pure, tested without threads or an engine.

Requests of the current task go first, since they need no switch; then those of tasks that are in memory anyway; then
whoever has waited longest. Once the oldest request of a task has waited for ``patience``, the task is *overdue*: as
soon as the current turn is over, the overdue task that was served longest ago gets the next one. So each task's oldest
request is begun after at most

    patience + (tasks − 1) × (turn_seconds + a batch) + a batch + tasks × a switch

whatever the others ask for: before its turn there is the rest of the current one, and at most one of every other task.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
        batch: requests that run together; 1 makes answers independent of who else asks, bit for bit.
        room: tokens that those may take together: for each the longest prompt of all and as many more as any may have.
            None for any number.
        context: tokens that the model can read; the longest prompt of all and as many more as any may have are no
            more, since what is finished is fed padding until all are. None for any number.
        together: the same where a prompt isn't longer than this: more tokens would change how it is read. None for
            as many as ``context``.
        order: ``grouped`` by task, or by ``arrival``, which is what grouping is measured against.
    """

    patience: float = 2.0
    linger: float = 0.0
    turn: int = 32
    turn_seconds: float = 2.0
    batch: int = 8
    room: int | None = None
    context: int | None = None
    together: int | None = None
    order: Literal["grouped", "arrival"] = "grouped"

    def __post_init__(self) -> None:
        for name in ("patience", "linger", "turn_seconds"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ConfigError(f"{name}: expected a number of seconds, got {getattr(self, name)}")
        for name in ("turn", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        if self.order not in ("grouped", "arrival"):
            raise ConfigError(f"order: expected 'grouped' or 'arrival', got {self.order!r}")

    def longest_wait(self, tasks: int, batch_seconds: float, switch_seconds: float) -> float:
        """Seconds after which the oldest request of each of so many tasks has begun, however many others there are."""
        turns = (tasks - 1) * (self.turn_seconds + batch_seconds)
        return self.patience + batch_seconds + turns + tasks * switch_seconds


@dataclass(frozen=True)
class Waiting:
    """One request in the queue; only those of the same task and ``kind`` can run together.

    A batch has room for ``prompt`` tokens and at most ``fresh`` more.
    """

    task: str
    arrived: float
    kind: Hashable = None
    prompt: int = 0
    fresh: int = 0


@dataclass(frozen=True)
class Turn:
    """The current task, since when and for how many requests; and when each task was served last."""

    task: str | None = None
    since: float = 0.0
    served: int = 0
    served_at: Mapping[str, float] = field(default_factory=dict)

    def after(self, task: str, served: int, start: float, end: float) -> Turn:
        """A batch of so many requests of a task was run."""
        times = {**self.served_at, task: end}
        if task == self.task:
            return Turn(task, self.since, self.served + served, times)
        return Turn(task, start, served, times)

    def is_over(self, now: float, policy: Policy) -> bool:
        """Whether an overdue task may interrupt."""
        return self.served >= policy.turn or now - self.since >= policy.turn_seconds

    def renewed(self, now: float) -> Turn:
        """The same task has another turn."""
        return Turn(self.task, now, 0, self.served_at)


@dataclass(frozen=True)
class Plan:
    """What to do now: run the requests at these places of the queue, or, if there are none, look again at a time."""

    places: tuple[int, ...] = ()
    again: float = math.inf


def next_batch(
    waiting: Sequence[Waiting], turn: Turn, now: float, policy: Policy, resident: Collection[str] = ()
) -> Plan:
    """Which requests to run now.

    Args:
        waiting: in the order of arrival.
        turn: the current one.
        now: on the clock of arrivals.
        policy: what requests are grouped by.
        resident: tasks that need no loading.
    """
    if not waiting:
        return Plan()
    if policy.order == "arrival":
        return _head(waiting, policy)
    task = next_task(waiting, turn, now, policy, resident)
    own = [place for place, request in enumerate(waiting) if request.task == task]
    first = waiting[own[0]]
    alike = [place for place in own if waiting[place].kind == first.kind]
    batch = _fitting(waiting, alike[: policy.batch], policy)
    full = len(batch) == policy.batch or len(batch) < len(alike)
    due = first.arrived + min(policy.linger, policy.patience)
    if task != turn.task and task not in resident and not full and now < due:
        return Plan(again=due)
    return Plan(batch)


def next_task(
    waiting: Sequence[Waiting], turn: Turn, now: float, policy: Policy, resident: Collection[str] = ()
) -> str:
    """The task whose turn it is; at least one request waits."""
    oldest: dict[str, float] = {}
    for request in waiting:
        oldest.setdefault(request.task, request.arrived)
    overdue = [task for task, arrived in oldest.items() if now - arrived >= policy.patience]
    if turn.task in oldest and not (overdue and turn.is_over(now, policy)):
        return turn.task
    if overdue:
        return min(overdue, key=lambda task: (turn.served_at.get(task, -math.inf), oldest[task]))
    here = [task for task in oldest if task in resident]
    return min(here or oldest, key=lambda task: oldest[task])


def _head(waiting: Sequence[Waiting], policy: Policy) -> Plan:
    """The oldest request, and those right behind it that can run with it."""
    first = waiting[0]
    places = [0]
    for place, request in enumerate(waiting[1 : policy.batch], 1):
        if (request.task, request.kind) != (first.task, first.kind):
            break
        places.append(place)
    return Plan(_fitting(waiting, places, policy))


def _fitting(waiting: Sequence[Waiting], places: Sequence[int], policy: Policy) -> tuple[int, ...]:
    """As many of the first ones as there is room for, at least one."""
    room, context, together = (
        math.inf if most is None else most for most in (policy.room, policy.context, policy.together)
    )
    if waiting[places[0]].prompt <= together:  # as all others are, which are of one kind
        context = min(context, together)
    prompt, fresh, fits = 0, 0, 0
    for place in places:
        # Shorter prompts are padded, and what is finished stays in the cache until all are.
        prompt, fresh = max(prompt, waiting[place].prompt), max(fresh, waiting[place].fresh)
        if fits and (prompt + fresh > context or (fits + 1) * (prompt + fresh) > room):
            break
        fits += 1
    return tuple(places[:fits])
