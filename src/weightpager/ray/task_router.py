"""Which server gets a request, as Ray Serve asks for it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from weightpager.ray.messages import ForwardedRequest, Standing
from weightpager.routing import Affinity, Fairness, ReplicaView, RoundRobin, Router


class KnownReplicas:
    """The latest standing of every server, and the requests that were sent to it. Safe for several threads.

    A request counts from the moment it is routed, so that those that are routed next see it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._standings: dict[str, Standing] = {}
        self._sent: dict[str, tuple[str, str] | None] = {}
        self._lost: set[str] = set()
        self._there: frozenset[str] | None = None  # None until `only` was called: then any server may be told of

    def told(self, standing: Standing) -> None:
        """A server has said how it stands; older words, and those of a server that has gone, are passed over."""
        with self._lock:
            if self._there is not None and standing.replica not in self._there:
                return
            known = self._standings.get(standing.replica)
            if known is None or known.sequence < standing.sequence:
                self._standings[standing.replica] = standing
                self._lost.discard(standing.replica)

    def begun(self, request: ForwardedRequest) -> None:
        """A request has come, and waits to be routed."""
        with self._lock:
            self._sent[request.key] = None

    def sent(self, request: ForwardedRequest, replica: str) -> None:
        """A request goes to a server, and to no other. One that has ended meanwhile is passed over."""
        with self._lock:
            if request.key in self._sent:
                self._sent[request.key] = (replica, request.task)

    def lost(self, request: ForwardedRequest) -> None:
        """The server that got a request seems to have died: until it says a word, others are preferred.

        Serve itself still sends requests to a server that was killed for its memory, until health checks have failed.
        """
        with self._lock:
            if sent := self._sent.get(request.key):
                self._lost.add(sent[0])

    def ended(self, request: ForwardedRequest) -> None:
        with self._lock:
            self._sent.pop(request.key, None)

    def only(self, replicas: Sequence[str]) -> None:
        """Forget all servers but these, which are all that there are."""
        with self._lock:
            self._there = frozenset(replicas)
            self._lost &= self._there
            self._standings = {name: self._standings[name] for name in replicas if name in self._standings}

    def views(self, replicas: Sequence[str], task: str) -> list[ReplicaView]:
        """The servers, one at least, as a router sees them for a request of this task.

        One that hasn't said a word has every task, and lacks nothing. Those are eligible that the least speaks against.
        """
        with self._lock:
            against = {name: self._against(name, task) for name in replicas}
            least = min(against.values())
            return [self._view(name, task, eligible=against[name] == least) for name in replicas]

    def request_bytes(self) -> float:
        """Bytes that a server loads while a request computes: the mean of those that know."""
        with self._lock:
            known = [standing.request_bytes for standing in self._standings.values() if standing.request_bytes]
        return sum(known) / len(known) if known else 0.0

    def standings(self) -> list[Standing]:
        with self._lock:
            return [self._standings[name] for name in sorted(self._standings)]

    def _against(self, name: str, task: str) -> tuple[bool, bool, bool]:
        """What speaks against a server, the gravest first: it has no such task; it seems dead; it hangs in one step.

        Servers have different tasks while Serve replaces them, after the bundle has changed. A request that names no
        task is any server's.
        """
        standing, lost = self._standings.get(name), name in self._lost
        if standing is None:
            return lost, lost, False  # one that died before it said a word may have had no task
        return task != "" and task not in standing.lacks, lost, standing.stuck

    def _view(self, name: str, task: str, *, eligible: bool) -> ReplicaView:
        tasks = [sent[1] for sent in self._sent.values() if sent is not None and sent[0] == name]
        standing = self._standings.get(name)
        if standing is None:
            return ReplicaView(0, 0, len(tasks), eligible)
        lacks = 0 if task in tasks else standing.lacks.get(task, 0)
        return ReplicaView(lacks, standing.free, len(tasks), eligible)


@cache
def known_replicas() -> KnownReplicas:
    """What this process knows. Serve makes the router itself, so that a gateway can't hand it anything."""
    return KnownReplicas()


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
