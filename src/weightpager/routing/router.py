"""What a router knows of a replica, and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ReplicaView:
    """A replica as a request's router sees it.

    Attributes:
        lacks: bytes of the request's task that memory lacks; 0 if the task is current or waits there already, since it
            will be loaded in any case.
        free: bytes of memory for pages that nothing is in.
        queue: requests that were sent there and aren't answered yet.
        eligible: whether it may get the request.
    """

    lacks: int
    free: int
    queue: int
    eligible: bool = True


class Router(Protocol):
    """Sends each request to one of its replicas. One thread uses it."""

    def choose(self, replicas: Sequence[ReplicaView]) -> int:
        """The number of the replica that gets the next request.

        Args:
            replicas: as they are now for this request, always in the same order; one at least is eligible.
        """
