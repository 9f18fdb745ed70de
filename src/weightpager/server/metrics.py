"""What Prometheus sees: counts that only grow, times, and the engine's state at the moment of asking."""

from __future__ import annotations

import collections
import math
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import partial
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from weightpager import __version__
from weightpager.engine.report import EngineReport, SwitchReport
from weightpager.server.status import SwitchStatus, TrafficStatus

SECONDS = 60.0
"""Looked back; requests of an earlier time tell nothing of now."""

_MOST = 20_000
"""Requests that are kept; with more of them, the time looked back is shorter."""


class Traffic:
    """Remembers requests for a minute. Safe to use from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._lock = threading.Lock()
        self._answered: collections.deque[tuple[float, int, float]] = collections.deque(maxlen=_MOST)

    def add(self, status: int, seconds: float) -> None:
        with self._lock:
            self._answered.append((self._clock(), status, seconds))

    def recent(self) -> TrafficStatus:
        """The last minute, or what there was of it."""
        with self._lock:
            now, answered = self._clock(), list(self._answered)
        since = max(self._started, now - SECONDS)
        if len(answered) == _MOST:
            since = max(since, answered[0][0])
        rows = [(status, seconds) for at, status, seconds in answered if at >= since]
        fast = sorted(seconds for status, seconds in rows if status < 400)
        errors = collections.Counter(status for status, _ in rows if status >= 400)
        return TrafficStatus(
            seconds=now - since,
            requests=len(rows),
            median_seconds=_rank(fast, 0.5),
            p95_seconds=_rank(fast, 0.95),
            errors=dict(sorted(errors.items())),
        )


def _rank(ordered: list[float], share: float) -> float | None:
    """The smallest value that this share of the others doesn't exceed; None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


_LATEST = 120
"""Switches that are kept one by one."""

_WAITS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SWITCHES = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BATCHES = (1, 2, 4, 8, 16, 32, 64)

_WORK, _LIST = "/v1/", "/v1/models"
"""How routes begin that clients ask for work, and those among them that only tell which tasks there are."""


class Queue(Protocol):
    """The queue before the worker, as far as metrics tell of it."""

    limit: int

    def waiting(self) -> Mapping[str, int]: ...

    def taken(self) -> int:
        """How many places are taken, also those of texts that are being read."""


class Watched(Protocol):
    """A bundle, as far as metrics tell of it."""

    @property
    def tasks(self) -> Mapping[str, object]: ...

    def report(self) -> EngineReport | None: ...

    def shares(self) -> Mapping[str, float]: ...


class Metrics:
    """One server's metrics, in a registry of their own. Safe to use from several threads.

    Attributes:
        traffic: requests for work that the counters have just counted.
        latest_switches: oldest first.
    """

    def __init__(self, bundles: Callable[[], Mapping[str, Watched]], queue: Queue) -> None:
        """``bundles`` tells which there are now, by name; a server of one has it without a name."""
        self.registry = CollectorRegistry()
        self.traffic = Traffic()
        self.latest_switches: deque[SwitchStatus] = deque(maxlen=_LATEST)
        registry = self.registry
        counter, histogram = partial(Counter, registry=registry), partial(Histogram, registry=registry)
        Info("weightpager_build", "Version of weightpager.", registry=registry).info({"version": __version__})
        self._requests = counter("weightpager_requests", "Requests answered.", ["route", "task", "status"])
        self._seconds = histogram(
            "weightpager_request_seconds", "From a request to the end of its answer.", ["route"], buckets=_WAITS
        )
        self._waits = histogram(
            "weightpager_wait_seconds", "That a text waited for its turn.", ["task"], buckets=_WAITS
        )
        self._batches = histogram("weightpager_batch_texts", "Texts run together.", ["task"], buckets=_BATCHES)
        self._compute = counter("weightpager_compute_seconds", "Spent running a task.", ["task"])
        self._tokens = counter("weightpager_generated_tokens", "Tokens generated.", ["task"])
        self._switches = counter("weightpager_switches", "Task switches.", ["from_task", "to_task"])
        self._loaded = counter("weightpager_switch_bytes", "Loaded because a switch waited for it.", ["task"])
        self._durations = histogram(
            "weightpager_switch_seconds", "From wanting a task to all pages in place.", buckets=_SWITCHES
        )
        self._slowest_batch = _Most("weightpager_slowest_batch_seconds", "The slowest step so far.", registry)
        self._slowest_switch = _Most("weightpager_slowest_switch_seconds", "The slowest switch so far.", registry)
        self._longest_gap = _Most(
            "weightpager_longest_gap_seconds", "Longest time that a task with waiting texts went unserved.", registry
        )
        self.registry.register(_State(bundles, queue))

    def answered(self, route: str, task: str, status: int, seconds: float) -> None:
        """A request is over. ``route`` and ``task`` are names of ours, never text of a client's."""
        self._requests.labels(route, task, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if _is_work(route):
            self.traffic.add(status, seconds)

    def began(self, task: str, waits: Sequence[float], gap: float) -> None:
        """A step begins; how long texts that begin have waited, and for how long others than its task were served."""
        self._longest_gap.raise_to(gap)
        for wait in waits:
            self._waits.labels(task).observe(wait)

    def ran(self, task: str, texts: int, tokens: int, seconds: float) -> None:
        if texts:
            self._batches.labels(task).observe(texts)
        self._compute.labels(task).inc(seconds)
        self._tokens.labels(task).inc(tokens)
        self._slowest_batch.raise_to(seconds)

    def switched(self, switch: SwitchReport) -> None:
        told = SwitchStatus(
            time=time.time(),
            from_task=switch.from_task,
            to_task=switch.to_task,
            bytes=switch.bytes,
            seconds=switch.seconds,
        )
        self.latest_switches.append(told)
        self._switches.labels(switch.from_task or "", switch.to_task).inc()
        self._loaded.labels(switch.to_task).inc(switch.bytes)
        self._durations.observe(switch.seconds)
        self._slowest_switch.raise_to(switch.seconds)

    def requests(self) -> Mapping[str, int]:
        """Requests for work that were taken and have been answered, well or not, by task."""
        found: Tally[str] = Tally()
        for labels, value in _totals(self._requests):
            if labels["task"] and _is_work(labels["route"]):
                found[labels["task"]] += int(value)
        return found

    def compute_seconds(self) -> float:
        """Spent running tasks, all together."""
        return sum(value for _, value in _totals(self._compute))

    def text(self) -> bytes:
        """All of them, in Prometheus' text format; loads nothing."""
        return generate_latest(self.registry)


def _is_work(route: str) -> bool:
    return route.startswith(_WORK) and not route.startswith(_LIST)


def _totals(counter: Counter) -> Iterator[tuple[Mapping[str, str], float]]:
    """What a counter has counted, with the labels of each count."""
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield sample.labels, sample.value


class _Most:
    """The largest value so far; written by the worker's thread alone."""

    def __init__(self, name: str, words: str, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(name, words, registry=registry)
        self._value = 0.0

    def raise_to(self, value: float) -> None:
        self._value = max(self._value, value)
        self._gauge.set(self._value)


class _State(Collector):
    """Read from the bundles and the queue when asked for."""

    def __init__(self, bundles: Callable[[], Mapping[str, Watched]], queue: Queue) -> None:
        self._bundles = bundles
        self._queue = queue

    def describe(self) -> Iterable[Metric]:
        return []  # what there is follows from the bundles' tasks

    def collect(self) -> Iterator[Metric]:
        bundles = self._bundles()
        reports = {name: report for name, each in bundles.items() if (report := each.report()) is not None}
        yield from _figures(reports, several="" not in bundles).values()
        if "" not in bundles:
            awake = GaugeMetricFamily("weightpager_bundle_awake", "Whether a bundle is in memory.", labels=["bundle"])
            for name in bundles:
                awake.add_metric([name], float(name in reports))
            yield awake
        share = "weightpager_task_resident_ratio"
        resident = GaugeMetricFamily(share, "Share of a task's pages in memory.", labels=["task"])
        for bundle in bundles.values():
            for task, part in bundle.shares().items():
                resident.add_metric([task], part)
        yield resident
        yield from _queue(self._queue, [task for bundle in bundles.values() for task in bundle.tasks])


_Family = CounterMetricFamily | GaugeMetricFamily


def _figures(reports: Mapping[str, Any], *, several: bool) -> dict[str, _Family]:
    """The metrics that the reports' fields are described with, and those of reports in them.

    Args:
        reports: by bundle, all of one class.
        several: whether the bundle is a label.

    Returns:
        Metrics by name.
    """
    found: dict[str, _Family] = {}
    for bundle, report in reports.items():
        labels = {"bundle": bundle} if several else {}
        for figure, value, metric in _described(report):
            names = [*labels, *([metric.by] if metric.by else [])]
            family = found.get(metric.name) or _family(metric, names)
            found[metric.name] = family
            for part, number in asdict(value).items() if metric.by else [(figure, value)]:
                if number is not None:
                    family.add_metric([*labels.values(), *([part] if metric.by else [])], number)
    return found


def _described(report: Any) -> Iterator[tuple[str, Any, Any]]:
    """The name and the value of each field with a metric, and the metric, also of reports in the report."""
    for each in fields(report):
        value, metric = getattr(report, each.name), each.metadata.get("metric")
        if metric is not None:
            yield each.name, value, metric
        elif is_dataclass(value):
            yield from _described(value)


def _family(metric: Any, labels: Sequence[str]) -> _Family:
    kind = CounterMetricFamily if metric.only_grows else GaugeMetricFamily
    return kind(metric.name, metric.words, labels=labels)


def _queue(queue: Queue, tasks: Iterable[str]) -> Iterator[Metric]:
    waiting = queue.waiting()
    depth = GaugeMetricFamily("weightpager_queue_texts", "Texts that wait for their turn.", labels=["task"])
    for task in tasks:
        depth.add_metric([task], waiting.get(task, 0))
    yield depth
    taken = "Places in the queue, those of texts that are being read included."
    yield _gauge("weightpager_queue_taken_texts", taken, queue.taken())
    yield _gauge("weightpager_queue_limit_texts", "Texts that may wait or be read.", queue.limit)


def _gauge(name: str, words: str, value: float) -> Metric:
    return GaugeMetricFamily(name, words, value=value)
