"""One replica after the other."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.routing.router import ReplicaView


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
