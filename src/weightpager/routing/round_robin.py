"""One replica after the other."""

from __future__ import annotations

from collections.abc import Sequence

from weightpager.routing.router import ReplicaView


class RoundRobin:
    """Sends each request to the replica after the one that got the last, whatever it lacks."""

    def __init__(self) -> None:
        self._sent = 0

    def choose(self, replicas: Sequence[ReplicaView]) -> int:
        """Implements `Router.choose`."""
        chosen = self._sent % len(replicas)
        self._sent += 1
        return chosen
