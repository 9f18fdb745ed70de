"""Several servers behind one router, in virtual time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from weightpager.routing.router import ReplicaView, Router
from weightpager.simulate.replica import Replica, Served
from weightpager.trace_file import Visit

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Replay:
    """The result of a trace.

    Attributes:
        served: the requests that each replica served, in the order in which they began.
    """

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
    """Sends requests where they were sent in another replay."""

    def __init__(self, routes: Sequence[int]) -> None:
        """Begin with the first request.

        Args:
            routes: the replica of each request.
        """
        self._left = iter(routes)

    def choose(self, replicas: Sequence[ReplicaView]) -> int:  # noqa: ARG002 - the protocol's
        """Implements `Router.choose`."""
        return next(self._left)


def replay(requests: Sequence[Visit], replicas: Sequence[Replica], router: Router) -> Replay:
    """Send every request of a trace to a replica when it comes, and let all be served.

    Args:
        requests: oldest first, with times; each is served once.
        replicas: new ones.
        router: says which replica gets each.
    """
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
