"""Which task runs next, and which of its requests. Pure: it is tested without threads or an engine.

The current task goes first, since it needs no switch; then tasks that are in memory or have a batch under way; then the
task that has waited longest. A task is *overdue* once its oldest request has waited for ``patience``. When the current
turn is over, the next one goes to the overdue task that was served longest ago. While a heavy prompt is there, which
takes many steps, turns and patience are as short as a step. A task that lingers for more requests lets those pass that
have a full batch. Within a task, the work that has been ready for longest goes first: a request is
ready when it comes, a batch under way when its latest step ends.

So a request that is the first one of its task begins after at most

    patience + (tasks − 1) × (turn_seconds + a step) + a step + (tasks + 1) × a switch

whatever other tasks are asked for: the rest of a step comes before its turn, and at most one turn of every other task.
`Policy.longest_wait` says what earlier requests of the same task add to that.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from weightpager.errors import QueueFullError, RequestError
from weightpager.server.scheduling.batching import Started, Waiting, beginnable, largest_batch
from weightpager.server.scheduling.job import Job, shutting_down
from weightpager.server.scheduling.settings import Policy


@dataclass(frozen=True)
class Turn:
    """The current task: since when it has its turn, and how many requests it has begun; when each task was served."""

    task: str | None = None
    since: float = 0.0
    served: int = 0
    served_at: Mapping[str, float] = field(default_factory=dict)

    def after(self, task: str, served: int, start: float, end: float) -> Turn:
        """The turn after a step of a task from ``start`` to ``end``, with which so many requests began."""
        times = {**self.served_at, task: end}
        if task == self.task:
            return Turn(task, self.since, self.served + served, times)
        return Turn(task, start, served, times)

    def is_over(self, now: float, policy: Policy) -> bool:
        """Whether an overdue task may interrupt it."""
        return self.served >= policy.turn or now - self.since >= policy.turn_seconds

    def before(self, task: str, now: float, policy: Policy) -> Turn:
        """The turn in which a task takes a step now: another one of the same task if its last is over."""
        if task == self.task and self.is_over(now, policy):
            return Turn(task, now, 0, self.served_at)
        return self


@dataclass(frozen=True)
class BatchPlan:
    """What to do now.

    Attributes:
        run: the number of the batch under way that takes its next step instead; None if requests begin.
        again: when to look again, if there is nothing to do now.
    """

    places: tuple[int, ...] = ()
    run: int | None = None
    again: float = math.inf


def task_of(plan: BatchPlan, waiting: Sequence[Waiting], started: Sequence[Started]) -> str | None:
    """The task whose step a plan is; None if there is nothing to do. The other arguments are those of `next_batch`."""
    if plan.places:
        return waiting[plan.places[0]].task
    if plan.run is not None:
        return started[plan.run].task
    return None


def next_batch(
    waiting: Sequence[Waiting],
    turn: Turn,
    now: float,
    policy: Policy,
    resident: Collection[str] = (),
    started: Sequence[Started] = (),
    barred: Collection[str] = (),
) -> BatchPlan:
    """Which requests begin, or which batch goes on. Requests are in the order of arrival, ``now`` on their clock.

    Tasks that are ``barred`` have no room in memory beside the batches under way.
    """
    places = beginnable(waiting, started, now, policy, barred)
    if not places and not started:
        return BatchPlan()
    if policy.order == "arrival":
        return _by_arrival(waiting, places, policy, started)
    again = math.inf
    while places or started:
        task = next_task([waiting[place] for place in places], turn, now, policy, resident, started)
        candidates = [place for place in places if waiting[place].task == task]
        run = _longest_ready(started, task)
        if run is not None and not (candidates and waiting[candidates[0]].arrived < started[run].ready):
            return BatchPlan(run=run)
        batch, due = _largest_of(waiting, candidates, started, policy)
        if run is not None or task == turn.task or task in resident or now >= due:
            return BatchPlan(batch)
        # It lingers: nothing is under way, and no task is in memory or overdue. Others may have a full batch.
        again = min(again, due)
        places = [place for place in places if waiting[place].task != task]
    return BatchPlan(again=again)


def next_task(
    waiting: Sequence[Waiting],
    turn: Turn,
    now: float,
    policy: Policy,
    resident: Collection[str] = (),
    started: Sequence[Started] = (),
) -> str:
    """The task whose turn it is. There must be a request that may begin, or a batch under way."""
    oldest: dict[str, float] = {}
    ready: list[Waiting | Started] = [*waiting, *started]
    for work in ready:
        if work.arrived < oldest.get(work.task, math.inf):
            oldest[work.task] = work.arrived
    policy = policy.hurried if any(work.heavy for work in ready) else policy
    overdue = [task for task, arrived in oldest.items() if now - arrived >= policy.patience]
    if turn.task in oldest and not (overdue and turn.is_over(now, policy)):
        return turn.task
    if overdue:
        return min(overdue, key=lambda task: (turn.served_at.get(task, -math.inf), oldest[task]))
    here = [task for task in oldest if task in resident or any(run.task == task for run in started)]
    return min(here or oldest, key=lambda task: oldest[task])


def _largest_of(
    waiting: Sequence[Waiting], places: Sequence[int], started: Sequence[Started], policy: Policy
) -> tuple[tuple[int, ...], float]:
    """The batch that begins with a task's oldest request, its first place, and until when a switch for it lingers."""
    first = waiting[places[0]]
    alike = [place for place in places if waiting[place].kind == first.kind]
    batch = largest_batch(waiting, alike, started, policy)
    full = len(batch) == policy.batch or len(batch) < len(alike)
    return batch, first.arrived + (0.0 if full else min(policy.linger, policy.patience))


def _longest_ready(started: Sequence[Started], task: str | None = None) -> int | None:
    """The number of the batch that has been ready for longest, among those of a task or among all."""
    batches = [number for number, run in enumerate(started) if task in (None, run.task)]
    return min(batches, key=lambda number: started[number].ready, default=None)


def _by_arrival(
    waiting: Sequence[Waiting], places: Sequence[int], policy: Policy, started: Sequence[Started]
) -> BatchPlan:
    """The work that has been ready for longest; with a request, those right behind it that can run with it."""
    run = _longest_ready(started)
    if run is not None and not (places and waiting[places[0]].arrived < started[run].ready):
        return BatchPlan(run=run)
    first = waiting[places[0]]
    alike = [places[0]]
    for place in places[1 : policy.batch]:
        if (waiting[place].task, waiting[place].kind) != (first.task, first.kind):
            break
        alike.append(place)
    return BatchPlan(_unbroken(alike, largest_batch(waiting, alike, started, policy)))


def _unbroken(places: Sequence[int], batch: Sequence[int]) -> tuple[int, ...]:
    return tuple(place for place, chosen in zip(places, batch, strict=False) if place == chosen)


Command = Callable[[], None]


@dataclass(frozen=True)
class Taken:
    """Jobs that begin together; or, if ``run`` is a number, the batch under way that goes on."""

    jobs: list[Job]
    run: int | None


class JobQueue:
    """A queue of at most ``limit`` jobs, and of commands, which go first. Several threads may use it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._changed = threading.Condition()
        self._jobs: list[Job] = []
        self._reserved = 0
        self._commands: deque[Command] = deque()
        self._closed = False

    def reserve(self, count: int) -> None:
        """Reserve places for all texts of a request, or for its pictures, before any work is done for them.

        Raises:
            RequestError: the queue never has room for so many.
            QueueFullError: the queue has no room for all of them now.
            ServerClosedError: the queue is closed.
        """
        with self._changed:
            self._check_open()
            if count > self.limit:
                raise RequestError(f"expected at most {self.limit} texts, as the server's --queue, found {count}")
            if self._taken + count > self.limit:
                self._jobs = [job for job in self._jobs if not job.cancelled]
            if self._taken + count > self.limit:
                raise QueueFullError(f"{self._taken} of {self.limit} texts are waiting; ask again later")
            self._reserved += count

    def give_up(self, count: int) -> None:
        with self._changed:
            self._reserved -= count

    def put(self, jobs: Sequence[Job]) -> None:
        """Queue jobs in places that were reserved for them.

        Raises:
            ServerClosedError: the queue is closed; the places stay reserved.
        """
        with self._changed:
            self._check_open()
            self._reserved -= sum(job.places for job in jobs)
            self._jobs.extend(jobs)
            self._changed.notify()

    def command(self, command: Command) -> None:
        """Have a command run between two steps.

        Raises:
            ServerClosedError: the queue is closed.
        """
        with self._changed:
            self._check_open()
            self._commands.append(command)
            self._changed.notify()

    def take(self, choose: Callable[[Sequence[Job]], BatchPlan]) -> Command | Taken | None:
        """Wait for something to do: a command, jobs that begin, or a batch that goes on. Cancelled jobs are dropped.

        Args:
            choose: which jobs begin, or which batch goes on; times are those of `time.monotonic`.

        Returns:
            What to do; None once the queue is closed and ``choose`` finds nothing.
        """
        with self._changed:
            while True:
                if self._commands:
                    return self._commands.popleft()
                self._jobs = [job for job in self._jobs if not job.cancelled]
                plan = choose(self._jobs)
                if plan.places or plan.run is not None:
                    return Taken(self._remove(plan.places), plan.run)
                if self._closed:
                    return None
                self._changed.wait(None if plan.again == math.inf else max(0.0, plan.again - time.monotonic()))

    def waiting(self) -> dict[str, int]:
        with self._changed:
            return dict(Counter(job.task for job in self._jobs if not job.cancelled))

    def taken(self) -> int:
        """How many places are taken: by jobs that wait, and by texts that are still being read."""
        with self._changed:
            return sum(job.places for job in self._jobs if not job.cancelled) + self._reserved

    def close(self) -> list[Job]:
        """Close the queue. Returns the jobs that were waiting."""
        with self._changed:
            self._closed = True
            left, self._jobs = self._jobs, []
            self._changed.notify()
            return left

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def _taken(self) -> int:
        return sum(job.places for job in self._jobs) + self._reserved

    def _remove(self, places: Sequence[int]) -> list[Job]:
        taken = [self._jobs[place] for place in places]
        for place in sorted(places, reverse=True):
            del self._jobs[place]
        return taken

    def _check_open(self) -> None:
        if self._closed:
            raise shutting_down()
