"""A server's metrics as Ray exports them, with the replica's name beside them."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry
from ray.serve.metrics import Gauge


class MetricsMirror:
    """Gives Ray the values of a registry. All are gauges there: Ray has no counter that is set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Nothing is given before `push`."""
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def push(self) -> None:
        """Give the values of now."""
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name not in self._gauges:
                    labels: Any = tuple(sample.labels)  # declared as a tuple of one
                    self._gauges[sample.name] = Gauge(sample.name, description=family.documentation, tag_keys=labels)
                self._gauges[sample.name].set(sample.value, tags=dict(sample.labels))
