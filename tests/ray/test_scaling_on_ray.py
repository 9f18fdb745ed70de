"""Servers that come as the load asks for them, on a real cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from weightpager.ray import app
from weightpager.ray.cluster import LOCAL
from weightpager.ray.run import served

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

LONG = {"model": "numbers", "prompt": ["two"] * 16, "max_tokens": 100, "temperature": 0, "ignore_eos": True}
SECONDS = 120.0
"""Serve itself waits half a minute before it believes in a load."""


@pytest.fixture
def client(writer_bundle: Path, ray_environment: None) -> Iterator[httpx.Client]:
    """Of one server, or two."""
    application = app(writer_bundle, replicas=(1, 2), backend="native")
    with (
        served(application, LOCAL, "127.0.0.1", 0, 3) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as found,
    ):
        yield found


def test_a_second_server_comes_when_one_has_too_much_to_do(client: httpx.Client) -> None:
    over, end = threading.Event(), time.monotonic() + SECONDS

    def ask() -> set[str]:
        found = set()
        while not over.is_set():
            answer = client.post("/v1/completions", json=LONG)
            found.add(answer.json()["choices"][0]["text"] if answer.status_code == 200 else answer.text)
        return found

    assert client.post("/v1/completions", json=LONG).status_code == 200
    assert len(client.get("/replicas").json()) == 1
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(ask) for _ in range(4)]
        while (servers := len(client.get("/replicas").json())) < 2 and time.monotonic() < end:
            time.sleep(1)
        over.set()
        texts = set.union(*(one.result() for one in asking))
    assert servers == 2
    assert len(texts) == 1  # one answer, whoever gave it
