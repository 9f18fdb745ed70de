"""Applications in a cluster that goes on, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from weightpager.ray import app
from weightpager.ray.cluster import AUTO, LOCAL, cluster
from weightpager.ray.serving.run import served

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

HOST = "127.0.0.1"
SHORT = {"model": "animals", "prompt": "cat", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def running(ray_environment: None) -> Iterator[None]:
    """A cluster that belongs to somebody else."""
    with cluster(LOCAL, num_cpus=2, object_store_memory=100 << 20):
        yield


def test_a_second_application_takes_over_the_port(writer_bundle: Path, running: None) -> None:
    port = 0
    for _ in range(2):
        with served(app(writer_bundle, replicas=1, backend="native"), AUTO, HOST, port, 1) as port:
            answer = httpx.post(f"http://{HOST}:{port}/v1/completions", json=SHORT, timeout=60, trust_env=False)
            assert answer.status_code == 200
