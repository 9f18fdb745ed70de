"""A server and its engine in virtual time: the server's scheduler, and the engine's plans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from weightpager.routing import ReplicaView, Router
from weightpager.runtime.prefetch.virtual_arena import VirtualArena, Wait
from weightpager.server.scheduling.batching import Waiting
from weightpager.server.scheduling.scheduler import Turn, next_batch
from weightpager.server.scheduling.settings import Policy
from weightpager.simulate.simulator import UsePredictor
from weightpager.trace_file import Visit


@dataclass(frozen=True)
class ServerModel:
    """How a server serves.

    Attributes:
        compute: seconds that a request takes once its task is in place. Requests compute one after the other.
        order: ``grouped`` by task, as servers do; or by ``arrival``.
    """

    compute: float
    order: Literal["grouped", "arrival"] = "grouped"


@dataclass(frozen=True)
class Served:
    """What became of a request of the trace.

    Attributes:
        task: its number.
        waited: seconds from its arrival until it computes, for its turn and for the switch.
        pages: number of pages that were loaded for it.
    """

    request: int
    task: int
    waited: float
    pages: int


class Replica:
    """One of several servers, with an engine of its own. It prefetches nothing; ``served`` are in order."""

    def __init__(
        self,
        numbers: Mapping[str, int],
        arena: VirtualArena,
        predictor: UsePredictor,
        service: ServerModel,
        page_bytes: int,
        *,
        leave_first: bool = False,
    ) -> None:
        """Nothing is in memory, and nothing waits: arena and predictor are new.

        ``leave_first`` says whether the current task's pages may go like any others in a switch. An engine keeps them
        to the last, in case that the switch fails.
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
        """Queue a request; it comes no sooner than those before it, and no step before that is left to take."""
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


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """The requests that each replica served, in the order in which they began."""

    served: Sequence[Sequence[Served]]

    @property
    def switches(self) -> int:
        """How often a replica went from one task to another. Its first task is no switch."""
        return sum(one.task != other.task for own in self.served for one, other in pairwise(own))

    @property
    def pages(self) -> int:
        """Pages loaded, those that filled the empty replicas included."""
        return sum(one.pages for own in self.served for one in own)

    @property
    def waited(self) -> Floats:
        """Seconds that each request waited until it computed [requests], by replica."""
        return np.array([one.waited for own in self.served for one in own])

    @property
    def routes(self) -> list[int]:
        """The replica of each request, in the order of the trace."""
        places = sorted((one.request, replica) for replica, own in enumerate(self.served) for one in own)
        return [replica for _, replica in places]

    @property
    def shares(self) -> list[float]:
        """Each replica's share of the requests."""
        total = sum(map(len, self.served))
        return [len(own) / total for own in self.served]


class KnownRoutes:
    """Sends requests where they were sent in another replay: ``routes`` has the replica of each."""

    def __init__(self, routes: Sequence[int]) -> None:
        self._left = iter(routes)

    def choose(self, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002 - the protocol's
        return next(self._left)


def replay(requests: Sequence[Visit], replicas: Sequence[Replica], router: Router) -> Replay:
    """Send every request of a trace, oldest first, to a new replica when it comes, and let all be served."""
    for place, request in enumerate(requests):
        _serve_until(request.start, replicas)
        chosen = router.choose([replica.view(request.task, request.start) for replica in replicas])
        replicas[chosen].put(place, request.task, request.start)
    _serve_until(np.inf, replicas)
    return Replay([replica.served for replica in replicas])


def _serve_until(seconds: float, replicas: Sequence[Replica]) -> None:
    """Let replicas take the steps that begin before this time, in the order of time."""
    while (first := min(replicas, key=lambda replica: replica.next_step)).next_step < seconds:
        first.step()
