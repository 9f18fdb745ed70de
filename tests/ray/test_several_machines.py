"""A cluster of two machines, as far as Ray can tell: each has its own workers and its own store of objects."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.cluster_utils import Cluster

import ray_jobs
import tiny
import weightpager as wp
from command import Command
from same_bundle import assert_same
from weightpager.ray.workers import on_ray

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def address(ray_environment: None) -> Iterator[str]:
    """``HOST:PORT`` of the head."""
    machine = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield str(cluster.address)
    cluster.shutdown()


def test_both_work(address: str) -> None:
    with on_ray(address) as workers:
        found = {done.value for done in workers.each(dict.fromkeys(range(4), ray_jobs.node), ray_jobs.quiet, 1)}
    assert len(found) == 2


def test_the_bundle_is_the_one_of_a_serial_compile(address: str, tmp_path: Path, weightpager: Command) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tiny.assistant(tmp_path)))
    done = weightpager("compile", tmp_path / "tasks.yaml", "--out", tmp_path / "there.bundle", "--ray", address)
    assert done.code == 0, done.err
    assert "Ray: up to 2 tasks at a time" in done.err
    here = wp.compile(tmp_path / "tasks.yaml", out=tmp_path / "here.bundle")
    assert_same(here.path, tmp_path / "there.bundle")
