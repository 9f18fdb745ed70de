"""Applications in a cluster that goes on, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from weightpager.errors import ConfigError
from weightpager.ray import app
from weightpager.ray.cluster import AUTO, LOCAL, cluster
from weightpager.ray.run import served
from weightpager.server.run import listen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOST = "127.0.0.1"
SHORT = {"model": "animals", "prompt": "cat", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def port(ray_environment: None) -> Iterator[int]:
    """A free one, in a cluster that belongs to somebody else."""
    with listen(HOST, 0) as found:
        free = int(found.getsockname()[1])
    with cluster(LOCAL, num_cpus=2, object_store_memory=100 << 20):
        yield free


@pytest.mark.long
def test_a_second_application_takes_over_the_port(writer_bundle: Path, port: int) -> None:
    application = app(writer_bundle, replicas=1, backend="native")
    for given in (port, port, 0):
        with served(application, AUTO, HOST, given, 1) as found:
            assert found == port
            answer = httpx.post(f"http://{HOST}:{port}/v1/completions", json=SHORT, timeout=60, trust_env=False)
            assert answer.status_code == 200
    expected = f"^--port: expected the port of the Ray Serve that runs in this cluster already, {port} at {HOST}, got"
    with listen(HOST, 0) as other, pytest.raises(ConfigError, match=expected):
        served(application, AUTO, HOST, int(other.getsockname()[1]), 1).__enter__()


def test_servers_that_cannot_start_say_why(writer_bundle: Path, port: int) -> None:
    application = app(writer_bundle, replicas=1, real_time=("wether",))
    with pytest.raises(ConfigError, match="^servers: expected them to start, found: unknown task 'wether'"):
        served(application, AUTO, HOST, port, 1).__enter__()
