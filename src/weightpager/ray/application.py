"""A bundle behind Ray Serve: several servers, and one way in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingContext

from weightpager.bundle import Bundle
from weightpager.config import parse_size
from weightpager.errors import ConfigError
from weightpager.ray.gateway import Gateway
from weightpager.ray.server_replica import ServerReplica
from weightpager.ray.task_router import Routing
from weightpager.routing import Fairness
from weightpager.runtime.budget import largest_budget
from weightpager.server.inputs.picture_inputs import body_bytes
from weightpager.server.middleware import LARGE_TOGETHER
from weightpager.server.scheduling.settings import Settings

_BESIDE = 400 << 20
"""Bytes of a server's process beside the budget: Python, Ray, libraries. Ray is told of them, so that it places no more
servers on a machine than it has room for."""

_OF_A_BODY = 3
"""How often what a large body holds is in memory: the body itself, its texts, and the files that these encode."""

_UNBOUNDED = 1_000_000
"""Requests that Serve may have under way at a server: the server has a bounded queue of its own, and says 429."""

_LAST = 5.0
"""Seconds that the gateway has longer than the servers, and the application's end than the gateway."""

FAIRNESS = Fairness(queue_weight=0.1)
"""Less than in a simulation, whose servers run one request after the other: real ones run those of a task together, so
that a queue of one task costs less."""


def app(
    bundle: str | Path,
    budget: str | int | None = None,
    *,
    replicas: int | tuple[int, int] = 2,
    cpus: float = 1.0,
    routing: Routing = "affinity",
    fairness: Fairness = FAIRNESS,
    settings: Settings | None = None,
    **options: Any,
) -> serve.Application:
    """An application for Ray Serve: ``serve.run(app(...))``, or ``serve run module:name``.

    Args:
        bundle: directory that ``weightpager compile`` wrote, at the same path on every machine that may get a server.
        budget: memory for weights of each server; None for all that the bundle holds.
        replicas: how many servers; or the fewest and the most, between which Serve chooses by how busy they are.
        cpus: that Ray keeps for a server, and the threads that it computes with.
        routing: "affinity" sends a request where its task is in memory; "round-robin" to one after the other.
        fairness: what affinity is weighed against, and how far it may go.
        settings: of each server, as ``weightpager serve`` takes them; None for its defaults.
        options: more arguments of `Engine.from_pretrained`.

    Raises:
        ConfigError: an argument is wrong.
        BundleError: the bundle can't be read here.
    """
    fewest, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 1 <= fewest <= most:
        raise ConfigError(f"replicas: expected 1 or more, or two such numbers in order, got {replicas}")
    if not (math.isfinite(cpus) and cpus > 0):
        raise ConfigError(f"cpus: expected a number above 0, got {cpus}")
    settings = settings or Settings()
    if settings.admin_token is not None:
        raise ConfigError("settings: expected no admin token, as the admin's routes are about one server, found one")
    if options.get("history") is not None:
        raise ConfigError("history: expected none, as one file can't be several servers', found one")
    path = Path(bundle).absolute()
    opened = Bundle.open(path)
    weights = largest_budget(opened) if budget is None else parse_size(budget, "budget")
    most_body = body_bytes(settings.body_bytes, opened.pictures)
    bodies = LARGE_TOGETHER * _OF_A_BODY * (most_body - settings.body_bytes)
    servers = serve.deployment(
        name="servers",
        ray_actor_options={"num_cpus": cpus, "memory": weights + _BESIDE + bodies},
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=settings.grace,
        health_check_period_s=2.0,
        request_router_config={
            "request_router_class": "weightpager.ray.task_router:TaskRouter",
            "request_router_kwargs": {"routing": routing, "fairness": asdict(fairness)},
            "request_routing_stats_period_s": 1.0,
        },
        **_number(fewest, most),
    )(ServerReplica)
    gateway = serve.deployment(
        name="gateway",
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=_UNBOUNDED,
        graceful_shutdown_timeout_s=settings.grace + _LAST,
    )(Gateway)
    server = servers.bind(str(path), settings, max(1, int(cpus)), {"budget": budget, **options})
    return gateway.bind(server, settings, most_body)


@dataclass(frozen=True)
class ClusterNeeds:
    """What the servers of an application need of a cluster.

    Attributes:
        end: seconds within which the application ends once it was told to.
    """

    servers: int
    cpus: float
    memory: int
    end: float

    @classmethod
    def of(cls, application: serve.Application) -> ClusterNeeds:
        """Those of an application of `app`."""
        arguments: Any = application._bound_deployment.init_args  # declared as a tuple of one
        servers, settings, _ = arguments
        deployment = servers._bound_deployment
        between = deployment._deployment_config.autoscaling_config
        asked = deployment.ray_actor_options
        fewest = between.min_replicas if between else deployment.num_replicas
        return cls(fewest, asked["num_cpus"], asked["memory"], settings.grace + 2 * _LAST)

    def room(self, machines: Iterable[Mapping[str, float]]) -> int:
        """How many of the servers fit into machines that offer these resources."""
        return sum(
            int(min(machine.get("CPU", 0) // self.cpus, machine.get("memory", 0) // self.memory))
            for machine in machines
        )


def _number(fewest: int, most: int) -> Mapping[str, Any]:
    if fewest == most:
        return {"num_replicas": most}
    by_load = {"policy_function": "weightpager.ray.application:policy"}
    return {"autoscaling_config": {"min_replicas": fewest, "max_replicas": most, "policy": by_load}}


@dataclass(frozen=True)
class LoadAim:
    """What is aimed at.

    Attributes:
        busy: the share of the time that a server computes.
        waiting: number of texts that wait for their turn, per server.
    """

    busy: float = 0.7
    waiting: float = 8.0

    def __post_init__(self) -> None:
        if not 0 < self.busy <= 1:
            raise ConfigError(f"busy: expected a share above 0, at most 1, got {self.busy}")
        if not (math.isfinite(self.waiting) and self.waiting > 0):
            raise ConfigError(f"waiting: expected a number above 0, got {self.waiting}")


def wanted(busy: Sequence[float], waiting: Sequence[float], aim: LoadAim) -> int:
    """Servers that would carry the load, at least one.

    The larger of two numbers: Σ busy / aim, which makes up for servers that compute all the time or hardly ever; and
    Σ waiting / aim, as the first one says nothing of how much waits for servers that are busy all the time.

    Args:
        busy: of each server there is, the share of the time that it computed.
        waiting: of each, the texts that waited.
        aim: for each.
    """
    return max(1, math.ceil(sum(busy) / aim.busy - 1e-9), math.ceil(sum(waiting) / aim.waiting - 1e-9))


def policy(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """`wanted`, as Serve asks for it; bounds and delays are Serve's own."""
    metrics = context.aggregated_metrics or {}
    busy, waiting = metrics.get("busy", {}), metrics.get("waiting", {})
    if not busy:
        return context.target_num_replicas, {}
    return wanted(list(busy.values()), list(waiting.values()), LoadAim()), {}
