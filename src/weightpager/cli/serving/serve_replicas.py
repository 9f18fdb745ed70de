"""``serve --replicas``: several servers on a Ray cluster, behind one port."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightpager.bundle import Bundle
from weightpager.cli import output
from weightpager.cli.options import extra

if TYPE_CHECKING:
    from weightpager.server.scheduling.settings import Settings


def serve_replicas(
    bundle: Path, settings: Settings, options: Mapping[str, Any], *, replicas: int, cluster: str, host: str, port: int
) -> None:
    """Serve until the process is told to end; requests under way are answered first.

    Args:
        bundle: that is served.
        settings: of each server.
        options: of each server's engine.
        replicas: how many servers there are.
        cluster: its address, "auto" or "local".
        host: to listen at.
        port: there; 0 for any free one.
    """
    with extra("ray"):
        from weightpager.ray.serving.application import app
        from weightpager.ray.serving.run import served
    from weightpager.server.http.run import told_to_end, url_of, warn_of_strangers

    warn_of_strangers(settings, host)
    application = app(bundle, replicas=replicas, settings=settings, **options)
    cpus = max(replicas, os.cpu_count() or 1)
    output.say(f"starting {replicas} servers on Ray …")
    with served(application, cluster, host, port, cpus) as bound, told_to_end():
        url = url_of(host, bound)
        output.say(f"{url}/ serves {', '.join(Bundle.open(bundle).tasks)}")
        output.next_step(f"curl {url}/replicas")
        threading.Event().wait()
