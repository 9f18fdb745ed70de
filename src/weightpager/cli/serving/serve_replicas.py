"""``serve --replicas``: several servers on a Ray cluster, behind one port."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.options import extra

if TYPE_CHECKING:
    from weightpager.server.scheduling.settings import Settings


@dataclass(frozen=True)
class Place:
    """Where servers run, and where they are reached.

    Attributes:
        replicas: how many.
        cluster: its address, "auto" or "local".
        host, port: to listen at.
    """

    replicas: int
    cluster: str
    host: str
    port: int


def serve_replicas(bundle: Path, settings: Settings, options: Mapping[str, Any], place: Place) -> None:
    """Serve until the process is told to end; requests under way are answered first."""
    with extra("ray"):
        from weightpager.ray.serving.application import app
        from weightpager.ray.serving.run import served
    from weightpager.server.http.run import told_to_end, url_of, warn_of_strangers

    warn_of_strangers(settings, place.host)
    application = app(bundle, replicas=place.replicas, settings=settings, **options)
    cpus = max(place.replicas, os.cpu_count() or 1)
    output.say(f"starting {place.replicas} servers on Ray …")
    with served(application, place.cluster, place.host, place.port, cpus) as port, told_to_end():
        url = url_of(place.host, port)
        output.say(f"{url}/ serves {', '.join(Bundle.open(bundle).tasks)}")
        output.next_step(f"curl {url}/replicas")
        threading.Event().wait()
