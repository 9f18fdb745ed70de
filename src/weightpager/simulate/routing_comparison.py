"""Ways of sending a trace's requests to replicas, compared in virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightpager.progress import StepProgress, silent
from weightpager.routing.affinity import Affinity, Fairness
from weightpager.routing.round_robin import RoundRobin
from weightpager.routing.router import Router
from weightpager.simulate.replica import Replica, Service
from weightpager.simulate.replicas import KnownRoutes, Replay, replay
from weightpager.simulate.reuse import CountedReuse, KnownReuse
from weightpager.simulate.simulator import Device, Simulator, UsePredictor
from weightpager.simulate.task_homes import TaskHomes
from weightpager.trace_file import Visit

ROUND_ROBIN, AFFINITY, ORACLE = "round robin", "affinity", "oracle"
WAYS = (ROUND_ROBIN, AFFINITY, ORACLE)


@dataclass(frozen=True)
class Routed:
    """What one way of routing requests cost.

    Attributes:
        way: the way in which a replica is chosen for a request.
        switches: number of switches of all replicas; the first task of each is none.
        bytes_loaded: bytes that all replicas load, from empty ones on.
        of_round_robin: these bytes as a multiple of round robin's; None if that loaded nothing.
        wait_p50_ms, wait_p99_ms: the time from the arrival of a request until it computes.
        shares: each replica's share of the requests.
    """

    way: str
    switches: int
    bytes_loaded: int
    of_round_robin: float | None
    wait_p50_ms: float
    wait_p99_ms: float
    shares: tuple[float, ...]


class RoutingComparison:
    """One trace of requests, and replicas that are all alike."""

    def __init__(
        self,
        simulator: Simulator,
        requests: Sequence[Visit],
        device: Device,
        service: Service,
        fairness: Fairness | None = None,
    ) -> None:
        """Replay nothing yet.

        Args:
            simulator: of the bundle.
            requests: oldest first, with times, one at least; each task fits.
            device: that every replica runs on.
            service: how every replica serves.
            fairness: how far affinity may go.
        """
        self._simulator = simulator
        self._requests = requests
        self._device = device
        self._service = service
        self._fairness = fairness

    def compare(self, replicas: int, progress: StepProgress = silent) -> list[Routed]:
        """What each way costs, round robin first.

        Args:
            replicas: how many.
            progress: told (ways tried, ways in all).
        """
        replays: dict[str, Replay] = {}
        for done, (way, run) in enumerate(((ROUND_ROBIN, self.round_robin), (AFFINITY, self.affinity)), 1):
            replays[way] = run(replicas)
            progress(done, len(WAYS))
        replays[ORACLE] = self.oracle(replicas, tuple(replays.values()))
        progress(len(WAYS), len(WAYS))
        return [self.routed(way, replays[way], replays[ROUND_ROBIN]) for way in WAYS]

    def round_robin(self, replicas: int) -> Replay:
        """Route to one replica after the other."""
        return self._replay(replicas, RoundRobin())

    def affinity(self, replicas: int) -> Replay:
        """Route by the bytes that replicas lack and the length of their queues; see `Affinity`."""
        request_bytes = self._service.compute * self._device.storage.bytes_per_second
        return self._replay(replicas, Affinity(replicas, request_bytes, self._fairness))

    def oracle(self, replicas: int, others: Sequence[Replay]) -> Replay:
        """Route with the whole trace known: of several routings, take the one that loads least.

        Each replica gives up the pages that it needs last. For a given choice of replicas, and in order of arrival, no
        other eviction loads fewer pages. The routings are those of the others, and a home for each task (`TaskHomes`).
        So it never loads more than others that serve in this order; yet it is no lower bound, since another routing may
        be better.

        Args:
            replicas: how many.
            others: of the same requests and replicas.
        """
        known = [self._knowing(replicas, other.routes) for other in others]
        known.append(self._knowing(replicas, self._at_home(replicas)))
        return min(known, key=lambda replay: replay.pages)

    def routed(self, way: str, replay: Replay, reference: Replay) -> Routed:
        """The figures of a replay.

        Args:
            way: its name.
            replay: of requests that were routed in this way.
            reference: what its bytes are compared with, round robin's.
        """
        median, p99 = np.percentile(replay.waited, [50, 99])
        return Routed(
            way,
            switches=replay.switches,
            bytes_loaded=replay.pages * self._simulator.page_bytes,
            of_round_robin=replay.pages / reference.pages if reference.pages else None,
            wait_p50_ms=round(1e3 * float(median), 3),
            wait_p99_ms=round(1e3 * float(p99), 3),
            shares=tuple(replay.shares),
        )

    def _at_home(self, replicas: int) -> list[int]:
        """The replica of each request if each task has a home."""
        numbers = [self._simulator.numbers[request.task] for request in self._requests]
        counts = Counter(numbers)
        uses = np.array([counts[task] for task in range(len(self._simulator.needs))])
        search = TaskHomes(self._simulator.needs, self._simulator.all_pages, self._device.slots, uses)
        homes = search.search(replicas)
        return [homes[number] for number in numbers]

    def _replay(self, replicas: int, router: Router) -> Replay:
        tasks = len(self._simulator.needs)
        return replay(self._requests, [self._replica(CountedReuse(tasks)) for _ in range(replicas)], router)

    def _knowing(self, replicas: int, routes: Sequence[int]) -> Replay:
        coming: list[list[int]] = [[] for _ in range(replicas)]
        for request, route in zip(self._requests, routes, strict=True):
            coming[route].append(self._simulator.numbers[request.task])
        tasks = len(self._simulator.needs)
        known = [self._replica(KnownReuse(tasks, own), leave_first=True) for own in coming]
        return replay(self._requests, known, KnownRoutes(routes))

    def _replica(self, predictor: UsePredictor, *, leave_first: bool = False) -> Replica:
        arena = self._simulator.arena(self._device)
        numbers, page_bytes = self._simulator.numbers, self._simulator.page_bytes
        return Replica(numbers, arena, predictor, self._service, page_bytes, leave_first=leave_first)
