"""What is seen to before an application runs in a cluster, and after: without one."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

from weightpager.errors import ConfigError
from weightpager.ray import run
from weightpager.ray.application import ClusterNeeds, app
from weightpager.server.scheduling.settings import Settings

HEAD = {"NodeID": "head", "Alive": True, "Resources": {"CPU": 2.0, "node:__internal_head__": 1.0}}
OTHER = {"NodeID": "other", "Alive": True, "Resources": {"CPU": 2.0}}


def in_a_cluster(monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], node: str = "head") -> None:
    """Pretend to be on this machine of a cluster."""
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: node))


def test_requests_come_in_at_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    in_a_cluster(monkeypatch, [OTHER, HEAD])
    run._check_head()
    in_a_cluster(monkeypatch, [OTHER, HEAD], "other")
    expected = "--ray: expected the cluster's head, where requests come in, found another machine of it; run the"
    with pytest.raises(ConfigError, match=expected):
        run._check_head()


MEMORY = 300 << 20
SMALL = {"NodeID": "small", "Alive": True, "Resources": {"CPU": 8.0, "memory": 1.5 * MEMORY}}
LARGE = {"NodeID": "large", "Alive": True, "Resources": {"CPU": 5.0, "memory": 9.0 * MEMORY}}
GONE = {**LARGE, "Alive": False}


def test_servers_that_do_not_fit_are_told_of(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    in_a_cluster(monkeypatch, [SMALL, LARGE, GONE, {**OTHER, "Resources": {}}])
    run._check_room(ClusterNeeds(3, 2.0, MEMORY, 30.0), grows=False)
    expected = (
        "--replicas: expected room for 4 servers of 300.0 MiB and 2 CPU each, found room for 3; lower --replicas or "
        "--budget"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        run._check_room(ClusterNeeds(4, 2.0, MEMORY, 30.0), grows=False)
    assert not caplog.messages
    run._check_room(ClusterNeeds(4, 2.0, MEMORY, 30.0), grows=True)
    assert "found room for 3; servers wait until machines join the cluster" in caplog.text


@pytest.mark.parametrize("replicas", [3, (3, 5)])
def test_an_application_needs_the_fewest_of_its_servers(
    assistant_bundle: Path, replicas: int | tuple[int, int]
) -> None:
    application = app(assistant_bundle, 1 << 20, replicas=replicas, cpus=2, settings=Settings(grace=70.0))
    assert ClusterNeeds.of(application) == ClusterNeeds(3, 2.0, (1 << 20) + (400 << 20), 80.0)
    assert application._bound_deployment._deployment_config.graceful_shutdown_timeout_s == 75.0


@pytest.mark.parametrize("lasts", [3, None])
def test_the_end_waits_for_the_application_and_no_longer(monkeypatch: pytest.MonkeyPatch, lasts: int | None) -> None:
    deleted, seconds = [], [0.0]

    def status() -> Any:
        return SimpleNamespace(applications={} if lasts is not None and seconds[0] >= lasts else {"weightpager": 1})

    def sleep(some: float) -> None:
        seconds[0] += some

    monkeypatch.setattr(serve, "delete", lambda name, _blocking: deleted.append((name, _blocking)))
    monkeypatch.setattr(serve, "status", status)
    monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda: seconds[0], sleep=sleep))
    run._end(80.0)
    assert deleted == [("weightpager", False)]
    assert seconds[0] == pytest.approx(80.0 if lasts is None else lasts, abs=0.3)
