"""Prefetches pages while tasks run. A thread of its own forecasts, plans, and hands reads to the pager."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from weightpager.runtime.paging.state import LoadStats
from weightpager.runtime.prediction.predictor import PredictionScore
from weightpager.runtime.prefetch.expected_uses import ExpectedUses, Floats
from weightpager.runtime.prefetch.prefetch_target import PlannedBatch, PrefetchTarget
from weightpager.runtime.prefetch.virtual_arena import look_again
from weightpager.store import StorageModel

_JOIN_SECONDS = 5.0
_MOST_EVENTS = 1000
_SMOOTHING = 0.2
_LEAST_BYTES = 1 << 20
"""A load of less says little about the speed of storage."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Switched:
    """A task became the current one."""

    task: int
    time: float
    stats: LoadStats


@dataclass(frozen=True, eq=False)
class PrefetchPolicy:
    """What is known when a plan is made. It is made anew when tasks come or leave, and when the budget changes.

    Attributes:
        expected: how much each task will be used.
        targets: the arenas.
        time: the time, by `time.monotonic`; all switches until then are known.
    """

    expected: ExpectedUses
    targets: Sequence[PrefetchTarget]
    time: float

    @property
    def differential_bytes(self) -> float:
        """Bytes to load for an average switch, in the mean over all arenas."""
        return sum(target.differential_bytes for target in self.targets) / max(1, len(self.targets))


class Prefetcher:
    """Prefetches between switches, never in the way of one, into the arena where a page is worth most.

    The predictor is asked, and learns, on one thread. One that is slow or hangs delays prefetches and nothing else.
    """

    def __init__(
        self,
        policy: PrefetchPolicy,
        make_room: Callable[[Floats], bool] | None = None,
        let_answer: Callable[[], None] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            policy: what is known so far.
            make_room: asked where no page pays in any arena as it is, by the expected uses of all tasks; returns
                whether arenas have changed, of which `aim` has told.
            let_answer: called after switches, before anything is done; returns when their answers have had time.
        """
        self._policy = policy
        self._make_room = make_room
        self._let_answer = let_answer
        self._changed = threading.Condition()
        self._news: deque[Switched] = deque(maxlen=_MOST_EVENTS)
        self._latest = self._news.copy()  # since the policy was made, learnt or not yet
        self._newer: PrefetchPolicy | None = None
        self._closed = False
        self._since = time.monotonic()
        self._failed = False
        self._storage = StorageModel()
        self._thread = threading.Thread(target=self._run, name="weightpager-prefetcher", daemon=True)
        self._thread.start()

    @property
    def pays(self) -> bool:
        pays = any(target.trial.pays for target in self._policy.targets)
        return pays and not self._failed and self._thread.is_alive()

    @property
    def score(self) -> PredictionScore:
        return self._policy.expected.score

    def tell(self, news: Switched) -> None:
        """A switch has come. Takes no time."""
        with self._changed:
            self._news.append(news)
            self._latest.append(news)
            self._changed.notify()

    def renew(self, policy: PrefetchPolicy) -> None:
        """Use another policy, once it has learnt the switches since it was made. Takes no time."""
        with self._changed:
            self._newer = policy
            while self._latest and self._latest[0].time <= policy.time:
                self._latest.popleft()
            self._news = self._latest.copy()  # some may have been learnt, but into the old policy
            self._changed.notify()

    def aim(self, targets: Sequence[PrefetchTarget]) -> None:
        """Prefetch into other arenas; what has been learnt stays, of the old ones nothing. Takes no time."""
        with self._changed:
            self._policy = replace(self._policy, targets=targets)
            if self._newer is not None:
                self._newer = replace(self._newer, targets=targets)
            self._expect()

    def close(self) -> None:
        """Begin nothing more, and end the thread unless a predictor hangs in it."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        for target in self._policy.targets:
            target.residency.stop_prefetch()
        if self._thread is not threading.current_thread():  # a planner, or the garbage collector, may close the engine
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:  # noqa: BLE001 - SystemExit of a planner too; it would end the thread without a word
            if not self._closed:
                _log.exception("prefetching has ended, the engine goes on without it")

    def _work(self) -> None:
        pause: float | None = None
        while (news := self._wait(pause)) is not None:
            if news and self._let_answer is not None:
                self._let_answer()
            for switched in news:
                self._learn(switched)
            pause = self._prefetch()

    def _wait(self, seconds: float | None) -> list[Switched] | None:
        """Wait for news, at most so long. Returns what there is, or None when the thread must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._news or self._newer or self._closed, seconds)
            news = list(self._news)
            self._news.clear()
            if self._newer is not None:
                self._adopt(self._newer)
            return None if self._closed else news

    def _adopt(self, policy: PrefetchPolicy) -> None:
        self._policy, self._newer = policy, None
        self._since = time.monotonic()
        self._failed = False
        self._expect()

    def _expect(self) -> None:
        """Tell the policy how long an average switch loads, at the present speed of storage."""
        policy = self._policy
        policy.expected.load_seconds = self._storage.seconds(0, round(policy.differential_bytes))

    def _learn(self, news: Switched) -> None:
        expected, began = self._policy.expected, self._since
        self._measure(news.stats)
        if news.task >= expected.tasks:
            return  # a reload has just added the task; a policy that knows it is on its way
        if expected.current is not None:
            dwell, after = news.time - news.stats.seconds - began, expected.uses_after(news.task)
            for target in self._policy.targets:
                target.learn(news.task, dwell, lambda elapsed: expected.uses(began + elapsed), after, self._storage)
        expected.observe(news.task, news.time)
        self._since = news.time
        self._failed = False

    def _measure(self, stats: LoadStats) -> None:
        """Keep up with the speed of storage."""
        if stats.bytes < _LEAST_BYTES or stats.seconds <= 0:
            return
        seconds = (1 - _SMOOTHING) / self._storage.bytes_per_second + _SMOOTHING * stats.seconds / stats.bytes
        self._storage = StorageModel(1 / seconds, seconds_per_read=0.0)
        self._expect()

    def _prefetch(self) -> float | None:
        """Load a batch, if one is worth it. Returns how long to wait for news before the next one."""
        expected, elapsed = self._policy.expected, time.monotonic() - self._since
        if expected.current is None or not self.pays:
            return None
        uses = expected.uses(time.monotonic())
        if uses is None:
            return None
        again = look_again(elapsed) - elapsed
        best = self._best(uses)
        if best is None:
            return 0.0 if self._make_room is not None and self._make_room(uses) else again
        if not best.residency.start_prefetch(best.plan, best.version):
            return again
        self._fail(best.residency.await_prefetch(again + 1.0))
        return 0.0

    def _best(self, uses: Floats) -> PlannedBatch | None:
        """The batch of the arena where a page is worth most; None where nothing pays."""
        current, targets = self._policy.expected.current, self._policy.targets
        batches = [target.plan(current, uses) for target in targets if target.trial.pays]
        best = max(batches, key=lambda batch: batch.worth, default=None)
        return best if best is not None and best.worth else None

    def _fail(self, error: BaseException | None) -> None:
        if error is not None and not self._failed:
            _log.info("nothing is prefetched until the next switch")
            self._failed = True
