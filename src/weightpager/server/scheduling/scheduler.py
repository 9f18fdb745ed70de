"""Which task runs next, and which of its work: pure, tested without threads or an engine.

Work of the current task goes first, since it needs no switch; then that of tasks that are in memory anyway or have
begun; then whoever has waited longest. Once the oldest request of a task has waited for ``patience``, the task is
*overdue*: as soon as the current turn is over, the overdue task that was served longest ago gets the next one. Within
a task, whoever has been ready for longest goes first: a request since it came, a batch under way since its latest step.
So a request that had no other of its task before it is begun after at most

    patience + (tasks − 1) × (turn_seconds + a step) + a step + (tasks + 1) × a switch

whatever the others ask for: before its turn there is the rest of a step, and at most one turn of every other task.
`Policy.longest_wait` says what others before it add to that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from weightpager.server.scheduling.batching import Started, Waiting, beginnable, together
from weightpager.server.scheduling.policy import Policy


@dataclass(frozen=True)
class Turn:
    """The current task, since when and for how many requests; and when each task was served last."""

    task: str | None = None
    since: float = 0.0
    served: int = 0
    served_at: Mapping[str, float] = field(default_factory=dict)

    def after(self, task: str, served: int, start: float, end: float) -> Turn:
        """A step of a task was run, from a time to another, in which so many requests began."""
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
    """What to do now.

    Attributes:
        places: of the requests in the queue that begin together.
        run: the number of the batch under way that has its next step instead.
        again: when to look again, where there is neither.
    """

    places: tuple[int, ...] = ()
    run: int | None = None
    again: float = math.inf


def next_batch(
    waiting: Sequence[Waiting],
    turn: Turn,
    now: float,
    policy: Policy,
    resident: Collection[str] = (),
    started: Sequence[Started] = (),
) -> Plan:
    """Which requests begin now, or which batch goes on.

    Args:
        waiting: in the order of arrival.
        turn: the current one.
        now: on the clock of arrivals.
        policy: what requests are grouped by.
        resident: tasks that need no loading.
        started: batches under way.
    """
    places = beginnable(waiting, started, now, policy)
    if not places and not started:
        return Plan()
    if policy.order == "arrival":
        return _by_arrival(waiting, places, policy, started)
    task = next_task([waiting[place] for place in places], turn, now, policy, resident, started)
    own = [place for place in places if waiting[place].task == task]
    run = _longest_ready(started, task)
    if run is not None and not (own and waiting[own[0]].arrived < started[run].ready):
        return Plan(run=run)
    first = waiting[own[0]]
    alike = [place for place in own if waiting[place].kind == first.kind]
    batch = together(waiting, alike, started, policy)
    full = len(batch) == policy.batch or len(batch) < len(alike)
    due = first.arrived + min(policy.linger, policy.patience)
    if task != turn.task and task not in resident and not full and now < due:
        return Plan(again=due)
    return Plan(batch)


def next_task(
    waiting: Sequence[Waiting],
    turn: Turn,
    now: float,
    policy: Policy,
    resident: Collection[str] = (),
    started: Sequence[Started] = (),
) -> str:
    """The task whose turn it is; at least one request waits that may begin, or one batch is under way."""
    oldest: dict[str, float] = {}
    ready: list[Waiting | Started] = [*waiting, *started]
    for one in ready:
        oldest[one.task] = min(one.arrived, oldest.get(one.task, math.inf))
    overdue = [task for task, arrived in oldest.items() if now - arrived >= policy.patience]
    if turn.task in oldest and not (overdue and turn.is_over(now, policy)):
        return turn.task
    if overdue:
        return min(overdue, key=lambda task: (turn.served_at.get(task, -math.inf), oldest[task]))
    here = [task for task in oldest if task in resident or any(run.task == task for run in started)]
    return min(here or oldest, key=lambda task: oldest[task])


def _longest_ready(started: Sequence[Started], task: str | None = None) -> int | None:
    """The number of the batch that has been ready for longest, of a task or of all."""
    own = [number for number, run in enumerate(started) if task in (None, run.task)]
    return min(own, key=lambda number: started[number].ready, default=None)


def _by_arrival(waiting: Sequence[Waiting], places: Sequence[int], policy: Policy, started: Sequence[Started]) -> Plan:
    """Whoever has been ready for longest; of requests, those right behind it that can run with it."""
    run = _longest_ready(started)
    if run is not None and not (places and waiting[places[0]].arrived < started[run].ready):
        return Plan(run=run)
    first = waiting[places[0]]
    alike = [places[0]]
    for place in places[1 : policy.batch]:
        if (waiting[place].task, waiting[place].kind) != (first.task, first.kind):
            break
        alike.append(place)
    return Plan(_unbroken(alike, together(waiting, alike, started, policy)))


def _unbroken(places: Sequence[int], batch: Sequence[int]) -> tuple[int, ...]:
    """The part of a batch before which nobody was left out."""
    return tuple(place for place, chosen in zip(places, batch, strict=False) if place == chosen)
