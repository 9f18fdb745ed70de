"""The process of ``weightpager serve --replicas``: it starts an application, and ends it without losing a request."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.serve.context import _get_global_client

from weightpager.config import format_size
from weightpager.errors import ConfigError, first_line
from weightpager.ray.application import ClusterNeeds
from weightpager.ray.cluster import LOCAL, cluster
from weightpager.server.run import listen

_log = logging.getLogger(__name__)

_NAME = "weightpager"

_HEAD = "node:__internal_head__"
"""A resource that Ray gives the head alone."""

_LOOK = 0.2
"""Seconds between two looks at an application that ends."""

_STORE_BYTES = 256 << 20
"""Bytes of shared memory in a cluster that is started: answers are small, and Ray would take a third of the memory."""


@contextmanager
def served(application: serve.Application, address: str, host: str, port: int, cpus: int) -> Iterator[int]:
    """Serve an application inside the block; yields the port. At its end, requests under way are answered first.

    Args:
        application: of `weightpager.ray.app`.
        address: of a cluster, as `cluster` takes it.
        host: to listen at.
        port: 0 for any free one, or for that of the Ray Serve that runs in the cluster.
        cpus: that a cluster needs if it is started for this.

    Raises:
        ConfigError: the port isn't free, there is no such cluster, this machine isn't its head, one that is started
            has no room for the servers, its Ray Serve listens elsewhere or runs an application of this name already, or
            the servers can't start.
    """
    needs = ClusterNeeds.of(application)
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # a cluster that is started inherits it
    if address == LOCAL:
        _free_port(host, port)  # otherwise Serve may run in the cluster, and have the port
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    with cluster(address, num_cpus=cpus, object_store_memory=_STORE_BYTES) as started:
        _check_head()
        _check_room(needs, grows=not started)
        port = _port(host, port)
        logs = {"enable_access_log": False}
        _start(host, port, logs)
        _check(host, port)
        try:
            _run(application, logs)
            yield port
        finally:
            _end(needs.end)


def _start(host: str, port: int, logs: dict[str, Any]) -> None:
    """Start Ray Serve, unless it runs in the cluster.

    Its proxy is given a minute to answer, by the variable that `served` sets: after Ray's own five seconds a small or
    busy machine would see it killed.
    """
    try:
        serve.start(http_options={"host": host, "port": port}, logging_config=logs)
    except (ray.exceptions.RayActorError, TimeoutError) as error:
        raise ConfigError(
            f"ray: expected Ray Serve to listen within a minute, found: {first_line(error)}; try again when the "
            "machine is less busy"
        ) from error


def _run(application: serve.Application, logs: dict[str, Any]) -> None:
    try:
        serve.run(application, name=_NAME, route_prefix="/", logging_config=logs)
    except RuntimeError as error:
        raise ConfigError(f"servers: expected them to start, found: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """Why servers can't start: the end of the failed one's traceback. The error itself names the deployment only."""
    application = serve.status().applications.get(_NAME)
    said = [one.message for one in application.deployments.values() if one.message] if application else []
    last = (said[0] if said else str(error)).strip().splitlines()[-1]
    return re.sub(r"^weightpager\.errors\.\w+: ", "", last)


def _end(seconds: float) -> None:
    """Delete the application, and wait until it has ended; a cluster that goes on ends it in any case."""
    serve.delete(_NAME, _blocking=False)  # blocking, it would fail after a minute
    last = time.monotonic() + seconds
    while _NAME in serve.status().applications and time.monotonic() < last:
        time.sleep(_LOOK)


def _check_head() -> None:
    """See that this machine is the cluster's head: on others Serve listens only while a server runs there."""
    here = ray.get_runtime_context().get_node_id()
    if not any(node["NodeID"] == here and _HEAD in node["Resources"] for node in _machines()):
        raise ConfigError(
            "--ray: expected the cluster's head, where requests come in, found another machine of it; run the command "
            "there"
        )


def _check_room(needs: ClusterNeeds, *, grows: bool) -> None:
    """See that the servers fit, since Serve waits for room without a word: ``grows`` if machines may still come."""
    room = needs.room(machine["Resources"] for machine in _machines())
    if room >= needs.servers:
        return
    found = (
        f"--replicas: expected room for {needs.servers} servers of {format_size(needs.memory)} and {needs.cpus:g} CPU "
        f"each, found room for {room}"
    )
    if not grows:
        raise ConfigError(f"{found}; lower --replicas or --budget")
    _log.warning("%s; servers wait until machines join the cluster, or lower --replicas or --budget", found)


def _machines() -> list[Mapping[str, Any]]:
    nodes: Any = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def _port(host: str, port: int) -> int:
    """The port to serve at; 0 is that of a Ray Serve that runs, which keeps it, or else any free one."""
    if not serve.status().proxies:
        return _free_port(host, port)
    return port or int(_serving().port)


def _serving() -> Any:
    client: Any = _get_global_client()
    return client.http_config


def _free_port(host: str, port: int) -> int:
    """The port, or any free one for 0. Errors are those of `listen`."""
    with listen(host, port) as found:
        return int(found.getsockname()[1])


def _check(host: str, port: int) -> None:
    """See that Serve is as it was asked to be; where it runs already, it stays as it is."""
    if _NAME in serve.status().applications:
        raise ConfigError(
            f"ray: expected a cluster that doesn't serve a bundle yet, found the application {_NAME!r} in it; "
            f"'serve shutdown' ends what it serves"
        )
    found = _serving()
    if port == found.port and not _is_free(host, port):
        return
    raise ConfigError(
        f"--port: expected the port of the Ray Serve that runs in this cluster already, {found.port} at {found.host}, "
        f"got {port} at {host}; take these, or end Ray Serve with 'serve shutdown'"
    )


def _is_free(host: str, port: int) -> bool:
    try:
        _free_port(host, port)
    except ConfigError:
        return False
    return True
