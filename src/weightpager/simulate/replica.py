"""A server and its engine in virtual time: the server's scheduler, and the engine's plans."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from weightpager.routing.router import ReplicaView
from weightpager.runtime.prefetch.virtual_arena import VirtualArena, Wait
from weightpager.server.scheduling.batching import Waiting
from weightpager.server.scheduling.policy import Policy
from weightpager.server.scheduling.scheduler import Turn, next_batch
from weightpager.simulate.simulator import UsePredictor


@dataclass(frozen=True)
class Service:
    """How a server serves.

    Attributes:
        compute: seconds that a request takes once its task is in place. Requests compute one after the other.
        order: ``grouped`` by task, as servers do; or by ``arrival``.
    """

    compute: float
    order: Literal["grouped", "arrival"] = "grouped"


@dataclass(frozen=True)
class Served:
    """What became of a request.

    Attributes:
        request: its place in the trace.
        task: its number.
        waited: seconds from its arrival until it computes, for its turn and for the switch.
        pages: number of pages that were loaded for it.
    """

    request: int
    task: int
    waited: float
    pages: int


class Replica:
    """One of several servers, with an engine of its own. It prefetches nothing.

    Attributes:
        served: the requests that have begun, in that order.
    """

    def __init__(
        self,
        numbers: Mapping[str, int],
        arena: VirtualArena,
        predictor: UsePredictor,
        service: Service,
        page_bytes: int,
        *,
        leave_first: bool = False,
    ) -> None:
        """Nothing is in memory, and nothing waits.

        Args:
            numbers: of the tasks, by name.
            arena: an empty one.
            predictor: a new one; observes every request that is served.
            service: how the server serves.
            page_bytes: bytes of a page.
            leave_first: whether the current task's pages may go like any others in a switch. An engine keeps them to
                the last, in case that the switch fails.
        """
        self._numbers = numbers
        self._arena = arena
        self._predictor = predictor
        self._compute = service.compute
        self._policy = Policy(batch=1, order=service.order)
        self._page_bytes = page_bytes
        self._leave_first = leave_first
        self._places: list[int] = []  # in the trace, of those that wait
        self._waiting: list[Waiting] = []
        self._turn = Turn()
        self._current: str | None = None
        self._free_at = 0.0
        self.served: list[Served] = []

    def view(self, task: str, now: float) -> ReplicaView:
        """What a router knows of it, for a request of this task."""
        blocks, number = self._arena.blocks, self._numbers[task]
        coming = task == self._current or any(waiting.task == task for waiting in self._waiting)
        missing = 0 if coming else blocks.missing_count(number)
        queue = len(self._waiting) + (self._free_at > now)
        return ReplicaView(missing * self._page_bytes, blocks.free * self._page_bytes, queue)

    def put(self, request: int, task: str, arrived: float) -> None:
        """Queue a request.

        Args:
            request: its place in the trace.
            task: its task's name.
            arrived: when it comes, no sooner than those before it; no step before that is left to take.
        """
        self._places.append(request)
        self._waiting.append(Waiting(task, arrived, cached=False))

    @property
    def next_step(self) -> float:
        """When it takes its next step; infinite if nothing waits."""
        return max(self._free_at, self._waiting[0].arrived) if self._waiting else math.inf

    def step(self) -> None:
        """Serve the request whose turn it is."""
        now = self.next_step
        (place,) = next_batch(self._waiting, self._turn, now, self._policy, self._resident()).places
        request, waiting = self._places.pop(place), self._waiting.pop(place)
        self._turn = self._turn.before(waiting.task, now, self._policy)
        wait = self._switch(waiting.task)
        start = now + wait.seconds
        self._predictor.observe(self._numbers[waiting.task], start)
        self.served.append(
            Served(request, self._numbers[waiting.task], now - waiting.arrived + wait.seconds, wait.pages)
        )
        self._free_at = start + self._compute
        self._turn = self._turn.after(waiting.task, 1, start, self._free_at)

    def _switch(self, task: str) -> Wait:
        """Make a task current."""
        if task == self._current:
            return Wait(0.0, 0)
        expected_uses = self._predictor.uses_after(self._numbers[task])
        if self._leave_first:
            self._arena.leave()
        self._current = task
        return self._arena.switch(self._numbers[task], expected_uses)

    def _resident(self) -> set[str]:
        """Tasks that wait and are in memory."""
        names = {waiting.task for waiting in self._waiting}
        return {name for name in names if self._arena.blocks.is_resident(self._numbers[name])}
