"""Which of several servers a request goes to. Pure: no torch, no threads, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from weightpager.errors import ConfigError


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


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fairness:
    """What affinity is weighed against, and how far it may go.

    Attributes:
        queue_weight: what a request in the queue weighs, in what a replica loads while a request computes.
        slack: requests by which the queue that gets the next request may be longer than the shortest one.
        share: a replica may have had at most this many times the average number of the latest requests.
        window: requests after which an earlier one counts 1/e.
    """

    queue_weight: float = 0.25
    slack: int = 4
    share: float = 1.3
    window: int = 200

    def __post_init__(self) -> None:
        if not (math.isfinite(self.queue_weight) and self.queue_weight >= 0):
            raise ConfigError(f"queue_weight: expected a number from 0, got {self.queue_weight}")
        if self.slack < 0:
            raise ConfigError(f"slack: expected 0 requests or more, got {self.slack}")
        if not self.share >= 1:
            raise ConfigError(f"share: expected 1 or more, got {self.share}")
        if self.window < 1:
            raise ConfigError(f"window: expected 1 request or more, got {self.window}")


class Affinity:
    """Sends a request to the replica of the least cost among those that may get it.

        cost = lacks + max(0, lacks - free) + queue_weight × request_bytes × queue

    all in bytes: what has to be loaded, what has to go for it and may have to be loaded again, and what the queue
    weighs; ``request_bytes`` is what a replica loads while a request computes. Of equal costs the replica counts that
    has had the fewest of the latest requests. Of those that are eligible, these may get it:

    1. Replicas whose queue is at most ``slack`` requests longer than the shortest one. So a request that is sent while
       Q are under way on N replicas never makes a queue longer than Q / N + slack + 1: none grows without bound unless
       all do. The router holds no request back, and a server lets each of its tasks begin within a bound
       (`Policy.longest_wait`): nobody starves.
    2. Of these, a replica may get the request while its count of the latest requests is at most ``share`` times the
       average, plus one. If no replica meets this, rule 1 alone decides. Without this rule a first replica would get
       everything while requests come one by one: it always lacks less than one that was never used.

    Attributes:
        request_bytes: bytes that a replica loads while a request computes. A caller that measures this may set it at
            any time.
    """

    def __init__(self, replicas: int, request_bytes: float, fairness: Fairness | None = None) -> None:
        """Nothing was sent yet.

        Args:
            replicas: how many there are.
            request_bytes: bytes that a replica loads while a request computes, in the mean.
            fairness: how far it may go.
        """
        self._fairness = fairness or Fairness()
        self.request_bytes = request_bytes
        self._lately: Floats = np.zeros(replicas)

    def choose(self, replicas: Sequence[ReplicaView]) -> int:
        """Implements `Router.choose`."""
        chosen = min(self._fair(replicas), key=lambda number: (self._cost(replicas[number]), self._lately[number]))
        self._lately *= 1 - 1 / self._fairness.window
        self._lately[chosen] += 1
        return chosen

    def _cost(self, replica: ReplicaView) -> float:
        waiting = self._fairness.queue_weight * self.request_bytes * replica.queue
        return replica.lacks + max(0, replica.lacks - replica.free) + waiting

    def _fair(self, replicas: Sequence[ReplicaView]) -> list[int]:
        eligible = [number for number, replica in enumerate(replicas) if replica.eligible]
        longest = min(replicas[number].queue for number in eligible) + self._fairness.slack
        most = self._fairness.share * self._lately[eligible].mean() + 1
        short = [number for number in eligible if replicas[number].queue <= longest]
        return [number for number in short if self._lately[number] <= most] or short


class RoundRobin:
    """Sends each request to the next eligible replica after the one that got the last, whatever it lacks."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, replicas: Sequence[ReplicaView]) -> int:
        """Implements `Router.choose`."""
        eligible = [number for number, replica in enumerate(replicas) if replica.eligible]
        chosen = min(eligible, key=lambda number: (number - self._next) % len(replicas))
        self._next = chosen + 1
        return chosen
