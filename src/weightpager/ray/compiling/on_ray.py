"""What a compile has of a cluster: workers for what each task has to itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

from weightpager.errors import ConfigError
from weightpager.ray.cluster import cluster
from weightpager.ray.compiling.workers import RayWorkers

_PLACES = "Ray: up to %d tasks at a time, each with %d threads; fewer threads (OMP_NUM_THREADS) let more run"

_log = logging.getLogger(__name__)


@contextmanager
def on_ray(address: str) -> Iterator[RayWorkers]:
    """Workers of a cluster, for `weightpager.compile`. At the end no job goes on, and a cluster that was started ends.

    Args:
        address: as `cluster` takes it.

    Raises:
        ConfigError: there is no cluster at the address, or none of its machines has as many CPUs as this process
            has threads.
    """
    with cluster(address) as started:
        threads, machines = torch.get_num_threads(), _machines()
        memory = max(one.get("memory", 0) for one in machines)
        count = sum(int(one["CPU"] // threads) for one in machines)
        _log.info(_PLACES, count, threads)
        workers = RayWorkers(memory, sends_environment=not started)
        workers.start(count, threads)
        try:
            yield workers
        finally:
            workers.close()


def _machines() -> list[dict[str, float]]:
    """What machines offer that have enough CPUs.

    Raises:
        ConfigError: none has.
    """
    threads = torch.get_num_threads()
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    machines: list[dict[str, float]] = [node["Resources"] for node in nodes if node["Alive"]]
    fits = [machine for machine in machines if machine.get("CPU", 0) >= threads]
    if not fits:
        most = max((machine.get("CPU", 0) for machine in machines), default=0)
        raise ConfigError(
            f"--ray: expected a machine with {threads} CPUs, as many as this process has threads, found at most "
            f"{most:g}; set OMP_NUM_THREADS to at most that"
        )
    return fits
