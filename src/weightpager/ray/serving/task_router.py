"""Which server gets a request, as Ray Serve asks for it."""

from __future__ import annotations

from typing import Any, Literal

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from weightpager.ray.serving.known_replicas import known_replicas
from weightpager.ray.serving.messages import ForwardedRequest, Standing
from weightpager.routing.affinity import Affinity, Fairness
from weightpager.routing.round_robin import RoundRobin
from weightpager.routing.router import Router

Routing = Literal["affinity", "round-robin"]


class TaskRouter(RequestRouter):
    """Asks a `Router` of ours, with what the gateway in this process knows of the servers.

    Serve carries this module to its processes by value: what they share is therefore fetched from another one.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Called by Serve before anything else, with the ``routing`` and ``fairness`` of `weightpager.ray.app`."""
        self._routing: Routing = kwargs["routing"]
        self._fairness = Fairness(**kwargs["fairness"])
        self._order: list[str] = []
        self._router: Router = RoundRobin()

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """The one server that gets the request."""
        if pending_request is None or not candidate_replicas:
            return [candidate_replicas]
        replicas = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        self._follow(replicas)
        request: Any = pending_request.args[0]
        assert isinstance(request, ForwardedRequest)
        known = known_replicas()
        if isinstance(self._router, Affinity):
            self._router.request_bytes = known.request_bytes()
        chosen = self._order[self._router.choose(known.views(self._order, request.task))]
        known.sent(request, chosen)
        return [[replicas[chosen]]]

    def _follow(self, replicas: dict[str, RunningReplica]) -> None:
        """Take note of servers that have come or gone, and of what they say from time to time."""
        order = sorted(replicas)
        if order != self._order:
            self._order = order
            self._router = RoundRobin() if self._routing == "round-robin" else Affinity(len(order), 0.0, self._fairness)
            known_replicas().only(order)
        for replica in replicas.values():
            if standing := replica.routing_stats.get("standing"):
                known_replicas().told(Standing(**standing))
