"""Ways of sending a trace's requests to replicas, compared in virtual time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.progress import StepProgress, silent
from weightpager.routing import Affinity, Fairness, RoundRobin, Router
from weightpager.runtime.planning.pages import Pages, TaskPages
from weightpager.simulate.replica import KnownRoutes, Replay, Replica, ServerModel, replay
from weightpager.simulate.simulator import CountedReuse, Device, Simulator, UsePredictor
from weightpager.trace_file import Visit

Floats = npt.NDArray[np.float64]


class KnownReuse:
    """Knows which tasks will be asked for, and in which order. Implements `UsePredictor`.

    A task is worth more than all that are asked for later together, so that the pages that go first are those that are
    needed last: Belady's rule, which loads the least for a given order of requests.
    """

    def __init__(self, tasks: int, requests: Sequence[int]) -> None:
        """``requests`` has the task of each, in the order in which they will come."""
        self._coming: list[deque[int]] = [deque() for _ in range(tasks)]
        for place, task in enumerate(requests):
            self._coming[task].append(place)

    def observe(self, task: int, seconds: float) -> None:  # noqa: ARG002 - the protocol's
        self._coming[task].popleft()

    def uses(self, seconds: float) -> None:
        """Nothing is prefetched."""

    def uses_after(self, task: int) -> Floats:  # noqa: ARG002 - the request that comes now is the task's next one
        coming = [task for task, places in enumerate(self._coming) if places]
        coming.sort(key=lambda task: self._coming[task][0])
        worth = np.zeros(len(self._coming))
        worth[coming] = 3.0 ** -np.arange(len(coming))  # each is more than the sum of those after it
        return worth


_MOST_SHARE = 1.3
"""Times the average share of the requests that a replica may have, unless one task alone has more."""


class TaskHomes:
    """Searches the replica of each task that makes the fewest pages come again and again.

    It takes every replica to keep the pages that its tasks use most; each use of another page is a load. From a start
    by the most used task first, tasks move one by one as long as that gains. So what it finds is good, and not proved
    to be the best. ``uses`` says how often each task will be asked for [tasks].
    """

    def __init__(self, needs: Sequence[Pages], pages: int, slots: int, uses: npt.NDArray[np.integer]) -> None:
        self._pages = TaskPages(needs, pages)
        self._slots = slots
        self._uses = uses.astype(np.float64)

    def search(self, replicas: int) -> list[int]:
        """The number of each task's replica."""
        most = max(_MOST_SHARE * self._uses.sum() / replicas, self._uses.max())
        homes = np.full(len(self._uses), -1)
        for task in np.argsort(-self._uses, kind="stable").tolist():
            homes[task] = self._best(homes, task, replicas, most)
        moved = True
        while moved:
            moved = False
            for task in range(len(homes)):
                best = self._best(homes, task, replicas, most)
                moved |= best != homes[task]
                homes[task] = best
        return [int(place) for place in homes]

    def _best(self, homes: npt.NDArray[np.int64], task: int, replicas: int, most: float) -> int:
        """Where a task loads least with all others where they are; where it is, unless another is better."""
        others = [(homes == replica) & (np.arange(len(homes)) != task) for replica in range(replicas)]
        alone = np.arange(len(homes)) == task
        loads = [self._loads(other | alone) - self._loads(other) for other in others]
        used = [float(self._uses[other].sum()) for other in others]
        allowed = [replica for replica in range(replicas) if used[replica] + self._uses[task] <= most + 1e-9]
        if not allowed:
            return int(homes[task]) if homes[task] >= 0 else int(np.argmin(used))
        return min(allowed, key=lambda replica: (round(loads[replica], 6), replica != homes[task], used[replica]))

    def _loads(self, tasks: npt.NDArray[np.bool_]) -> float:
        """Uses of the pages that a replica of these tasks can't keep."""
        uses = self._pages.sums(np.where(tasks, self._uses, 0.0))
        kept = np.partition(uses, len(uses) - self._slots)[-self._slots :] if self._slots < len(uses) else uses
        return float(uses.sum() - kept.sum())


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
        service: ServerModel,
        fairness: Fairness | None = None,
    ) -> None:
        """``requests`` come oldest first, with times, one at least; each task fits."""
        self._simulator = simulator
        self._requests = requests
        self._device = device
        self._service = service
        self._fairness = fairness

    def compare(self, replicas: int, progress: StepProgress = silent) -> list[Routed]:
        """What each way costs, round robin first; progress is told (ways tried, ways in all)."""
        replays: dict[str, Replay] = {}
        for done, (way, run) in enumerate(((ROUND_ROBIN, self.round_robin), (AFFINITY, self.affinity)), 1):
            replays[way] = run(replicas)
            progress(done, len(WAYS))
        replays[ORACLE] = self.oracle(replicas, tuple(replays.values()))
        progress(len(WAYS), len(WAYS))
        return [self.routed(way, replays[way], replays[ROUND_ROBIN]) for way in WAYS]

    def round_robin(self, replicas: int) -> Replay:
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
        """
        known = [self._knowing(replicas, other.routes) for other in others]
        known.append(self._knowing(replicas, self._at_home(replicas)))
        return min(known, key=lambda replay: replay.pages)

    def routed(self, way: str, replay: Replay, reference: Replay) -> Routed:
        """The figures of a replay; its bytes are compared with those of the ``reference``, round robin's."""
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
