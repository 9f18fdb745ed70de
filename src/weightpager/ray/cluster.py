"""The cluster that a compile uses: one that runs, or one of this machine's that is started for it."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from weightpager.errors import ConfigError, first_line
from weightpager.ray.workers import RayWorkers

AUTO = "auto"
"""A cluster that runs, or one that is started."""

_SECONDS = 5.0
"""After which a machine that says nothing isn't there. Ray itself would try for a minute."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}

_PLACES = "Ray: up to %d tasks at a time, each with %d threads; fewer threads (OMP_NUM_THREADS) let more run"

_log = logging.getLogger(__name__)


@contextmanager
def on_ray(address: str) -> Iterator[RayWorkers]:
    """Workers of a cluster, for `weightpager.compile`. At the end no job goes on, and a cluster that was started ends.

    Args:
        address: ``HOST:PORT`` of a cluster's head, or ``auto``: the cluster that this process is connected to, that
            which ``RAY_ADDRESS`` names, one that runs on this machine, or else one that is started here.

    Raises:
        ConfigError: there is no cluster at the address, or none of its machines has as many CPUs as this process
            has threads.
    """
    joined = address == AUTO and ray.is_initialized()
    started = not joined and _connect(address)
    try:
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
    finally:
        if not joined:
            ray.shutdown()


def _connect(address: str) -> bool:
    """Connect to a cluster; whether it was started for that."""
    stated = os.environ.get("RAY_ADDRESS", "") if address == AUTO else address
    if stated not in ("", AUTO, "local"):
        _check(stated)
        _init(stated, stated)
        return False
    if stated != "local":
        try:
            ray_init(address=AUTO)
        except ConnectionError:  # none runs
            pass
        else:
            return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told that a compile runs
    _init("local", "this machine", include_dashboard=False)
    return True


def _check(address: str) -> None:
    """See that something answers at an address before Ray tries for long.

    Raises:
        ConfigError: nothing does.
    """
    host, _, port = address.rpartition(":")
    expected = f"--ray: expected auto, or HOST:PORT of a Ray cluster's head such as 10.0.0.1:6379, found {address!r}"
    if "://" in address:
        raise ConfigError(f"{expected}; run the command on a machine of the cluster, with the address of its head")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(expected)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except OSError as error:
        why = error.strerror or first_line(error)
        raise ConfigError(
            f"{expected}, where nothing answers ({why}); start one with 'ray start --head', or take auto"
        ) from error


def _init(address: str, named: str, **options: Any) -> None:
    try:
        ray_init(address=address, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError, RayError) as error:
        raise ConfigError(
            f"--ray: expected a Ray cluster at {named} that this machine is part of, found: {first_line(error)}; "
            "join it with 'ray start --address', or take auto"
        ) from error


def ray_init(**options: Any) -> None:
    """`ray.init`, without what it says of itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(**_QUIET, **options)


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
