"""What is seen to before an application runs in a cluster, and after: without one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from weightpager.errors import ConfigError
from weightpager.ray.serving import run

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
