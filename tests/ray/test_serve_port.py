"""Which port is served at beside a Ray Serve that runs; without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from weightpager.errors import ConfigError
from weightpager.ray import run
from weightpager.server.run import listen

HOST = "127.0.0.1"


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a Ray Serve that runs."""
    with listen(HOST, 0) as found:
        port = int(found.getsockname()[1])
        client = SimpleNamespace(http_config=SimpleNamespace(host=HOST, port=port))
        monkeypatch.setattr(run, "_get_global_client", lambda: client)
        status = SimpleNamespace(proxies={"node": "HEALTHY"}, applications={})
        monkeypatch.setattr("ray.serve.status", lambda: status)
        yield port


def test_any_port_is_the_one_that_ray_serve_has(running: int) -> None:
    assert run._port(HOST, 0) == run._port(HOST, running) == running
    run._check(HOST, running)


def test_a_port_of_somebody_else_is_refused(running: int) -> None:
    with listen(HOST, 0) as other:
        port = int(other.getsockname()[1])
        expected = f"in this cluster already, {running} at {HOST}, got {port} at {HOST}; take these"
        with pytest.raises(ConfigError, match=expected):
            run._check(HOST, run._port(HOST, port))


def test_an_address_where_ray_serve_does_not_listen_is_refused(running: int) -> None:
    with pytest.raises(ConfigError, match=f"{running} at {HOST}, got {running} at 127.0.0.2"):
        run._check("127.0.0.2", running)
