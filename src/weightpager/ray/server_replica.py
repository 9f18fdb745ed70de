"""One server of an application on Ray Serve: an engine of its own, behind the routes that `weightpager serve` has."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve.metrics import Gauge

from weightpager.engine import Engine, EngineReport
from weightpager.errors import WeightpagerError
from weightpager.ray.messages import ForwardedRequest, Piece, ResponseStart, Standing
from weightpager.server.app import create_app
from weightpager.server.scheduling.service import Service
from weightpager.server.scheduling.settings import Settings


class MetricsMirror:
    """Gives Ray the values of a registry. All are gauges there: Ray has no counter that is set."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._gauges: dict[str, Gauge] = {}

    def push(self) -> None:
        for family in self._registry.collect():
            for sample in family.samples:
                if sample.name not in self._gauges:
                    labels: Any = tuple(sample.labels)  # declared as a tuple of one
                    self._gauges[sample.name] = Gauge(sample.name, description=family.documentation, tag_keys=labels)
                self._gauges[sample.name].set(sample.value, tags=dict(sample.labels))


class ServerReplica:
    """Answers the requests that the gateway forwards. Ray Serve makes it, asks it how it is, and ends it."""

    def __init__(self, bundle: str, settings: Settings, threads: int, options: Mapping[str, Any]) -> None:
        """Open the bundle; arguments are those of `weightpager.ray.app`, and the threads that native code uses.

        Raises:
            WeightpagerError: as `Engine.from_pretrained`.
        """
        os.environ.setdefault("WEIGHTPAGER_THREADS", str(threads))
        self._name = serve.get_replica_context().replica_id.unique_id
        self._service = Service(Engine.from_pretrained(bundle, **options), settings)
        self._app = create_app(self._service)
        self._mirror = MetricsMirror(self._service.metrics.registry)
        self._numbers = itertools.count(1)
        self._answered = 0
        self._computed = 0.0, time.monotonic()
        self._service.start()

    async def answer(self, request: ForwardedRequest) -> AsyncIterator[Piece]:
        """The head of the answer, pieces of its body as they come, and how the server stands afterwards."""
        pieces: asyncio.Queue[Piece | None] = asyncio.Queue()
        running = asyncio.create_task(self._run(request, pieces))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            await running
            self._answered += 1
            yield self.standing()
        finally:
            running.cancel()  # the client has gone away: so do its jobs
            with suppress(asyncio.CancelledError):
                await running

    async def _run(self, request: ForwardedRequest, pieces: asyncio.Queue[Piece | None]) -> None:
        body: list[dict[str, Any]] = [{"type": "http.request", "body": request.body, "more_body": False}]
        whole = False

        async def receive() -> dict[str, Any]:
            if not body:
                await asyncio.Event().wait()  # a client that goes away cancels all of this
            return body.pop()

        async def send(message: MutableMapping[str, Any]) -> None:
            nonlocal whole
            if message["type"] == "http.response.start":
                pieces.put_nowait(ResponseStart(message["status"], tuple(map(tuple, message["headers"]))))
                return
            if part := message.get("body", b""):
                pieces.put_nowait(part)
            whole = not message.get("more_body", False)

        try:
            await self._app(request.scope(), receive, send)
        except Exception:
            if not whole:  # the client of a whole answer has its 500, and the log has the error
                raise
        finally:
            pieces.put_nowait(None)

    def standing(self) -> Standing:
        engine, page = self._service.engine, self._service.engine.bundle.page_bytes
        found, report = engine.residency(), engine.report()
        return Standing(
            replica=self._name,
            pid=os.getpid(),
            sequence=next(self._numbers),
            lacks={task: int(np.count_nonzero(~found.resident[need])) * page for task, need in found.needs.items()},
            free=(report.slots - report.resident_pages) * page,
            request_bytes=_bandwidth(report) * self._service.metrics.compute_seconds() / max(1, self._answered),
            current=engine.monitor.current,
            waiting=sum(self._service.queue.waiting().values()),
            bytes_read=report.bytes_read,
            switches=engine.monitor.switches,
            stuck=self._service.stuck,
        )

    def record_routing_stats(self) -> dict[str, Any]:
        """What Serve carries to the routers of all gateways, once a second; Ray gets the metrics as often."""
        self._mirror.push()
        return {"standing": asdict(self.standing())}

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `weightpager.ray.application` decides by."""
        (before, then), now = self._computed, time.monotonic()
        self._computed = self._service.metrics.compute_seconds(), now
        busy = (self._computed[0] - before) / max(now - then, 1e-3)
        return {"busy": min(1.0, busy), "waiting": float(sum(self._service.queue.waiting().values()))}

    def check_health(self) -> None:
        """Serve replaces a server in which this raises.

        A step that is slow, but within a request's time, isn't enough: to end the server would lose its other answers,
        and another server would get the slow request, and be slow.

        Raises:
            WeightpagerError: the worker has ended, or one step has kept it busy for longer than a request may take.
        """
        worker, most = self._service.worker, self._service.settings.timeout
        if not worker.alive:
            raise WeightpagerError("expected a server whose worker runs, found it ended")
        if worker.busy > most:
            raise WeightpagerError(f"expected steps of at most {most:g} seconds (--timeout), found a longer one")

    def __del__(self) -> None:
        """Serve calls it once the requests under way have ended, or their time is over."""
        if hasattr(self, "_service"):
            self._service.close()


def _bandwidth(report: EngineReport) -> float:
    seconds = sum(switch.load_seconds for switch in report.switches)
    return sum(switch.bytes for switch in report.switches) / seconds if seconds else 0.0
