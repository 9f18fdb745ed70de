"""What is said where there is no cluster, or one of other machines."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import ray
import yaml

import tiny
from command import Command
from weightpager.compiler.training import device
from weightpager.errors import BundleFormatError, ConfigError
from weightpager.ray.cluster import cluster
from weightpager.ray.job import Failed, Surroundings, environment
from weightpager.ray.workers import on_ray


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_an_address_where_nobody_is_is_refused_at_once() -> None:
    port = free_port()
    expected = r"--ray: expected auto, or HOST:PORT of a Ray cluster's head such as 10\.0\.0\.1:6379, found "
    with pytest.raises(ConfigError, match=rf"{expected}'127\.0\.0\.1:{port}', where nothing answers \(Connection ref"):
        on_ray(f"127.0.0.1:{port}").__enter__()
    for wrong in ("here", "host:", "host:0", "host:70000", ":6379"):
        with pytest.raises(ConfigError, match=f"{expected}'{wrong}'$"):
            on_ray(wrong).__enter__()
    with pytest.raises(ConfigError, match=r"found 'ray://h:1'; run the command on a machine of the cluster"):
        on_ray("ray://h:1").__enter__()


def test_a_stated_address_is_not_replaced_by_a_cluster_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="^RAY_ADDRESS: expected .* where nothing answers .*, or unset RAY_ADDRESS$"):
        on_ray("auto").__enter__()
    for wrong in ("here", "ray://h:1"):
        monkeypatch.setenv("RAY_ADDRESS", wrong)
        with pytest.raises(ConfigError, match=f"^RAY_ADDRESS: expected .* found '{wrong}'; .*, or unset RAY_ADDRESS$"):
            on_ray("auto").__enter__()


@pytest.mark.parametrize(
    ("stated", "running", "joined"),
    [
        (None, [], False),
        (None, ["10.0.0.1:6379"], False),  # another process has it for itself
        ("10.0.0.1:6379", [], False),  # it has ended
        ("10.0.0.1:6379", ["10.0.0.2:6379"], False),
        ("10.0.0.1:6379", ["10.0.0.2:6379", "10.0.0.1:6379"], True),
    ],
)
def test_no_cluster_is_joined_that_belongs_to_another_process(
    monkeypatch: pytest.MonkeyPatch, stated: str | None, running: list[str], joined: bool
) -> None:
    started: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("weightpager.ray.cluster.find_bootstrap_address", lambda _: stated)
    monkeypatch.setattr("weightpager.ray.cluster.find_gcs_addresses", lambda: frozenset(running))
    monkeypatch.setattr(ray, "init", lambda address, **_: started.append(address))
    with cluster("auto") as own:
        assert own is not joined
    assert started == ["auto" if joined else "local"]


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379"])
def test_a_cluster_of_another_ray_is_named_whole(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.1\n    Python: 3.1\n")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("weightpager.ray.cluster.find_bootstrap_address", lambda _: "10.0.0.1:6379")
    monkeypatch.setattr("weightpager.ray.cluster.find_gcs_addresses", lambda: frozenset(["10.0.0.1:6379"]))
    monkeypatch.setattr("weightpager.ray.cluster._check", lambda _: None)
    monkeypatch.setattr(ray, "init", refuse)
    found = "at 10.0.0.1:6379 .* found: Version mismatch: The cluster was started with: Ray: 2.1 Python: 3.1; join it"
    with pytest.raises(ConfigError, match=f"^--ray: expected a Ray cluster {found}"):
        on_ray(address).__enter__()


@pytest.mark.parametrize("kind", [OSError, Exception])
@pytest.mark.parametrize("address", ["auto", "local"])
def test_a_cluster_that_cannot_be_started_is_not_told_as_one_to_join(
    monkeypatch: pytest.MonkeyPatch, address: str, kind: type[Exception]
) -> None:
    def refuse(**_: object) -> None:
        raise kind("No space left\n  on device")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("weightpager.ray.cluster.find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(ray, "init", refuse)
    expected = "--ray: expected to start Ray on this machine, found: No space left on device; mend that, or take a "
    with pytest.raises(ConfigError, match=f"^{expected}running cluster's HOST:PORT$"), cluster(address):
        pass


def test_the_command_says_that_ray_is_missing(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tiny.assistant(tmp_path)))
    for name in [name for name in sys.modules if name.startswith("weightpager.ray")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = weightpager("compile", tmp_path / "tasks.yaml", "--out", tmp_path / "a.bundle", "--ray", "auto")
    assert done.code == 2
    assert "expected the package 'ray', found none; install 'weightpager[ray]' to use this command" in done.err
    assert not (tmp_path / "a.bundle").exists()


def test_a_worker_with_other_versions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_stated", device._StatedTrial())  # this process must find out for itself again
    ours = Surroundings.here()
    ours.take("node-1")  # as everything is
    other = Surroundings({**ours.versions, "torch": "1.0"}, ours.processor, ours.arithmetic)
    with pytest.raises(
        ConfigError, match=r"--ray: expected torch 1\.0 on every machine .* found torch 2\.\S+ on node-1; install"
    ):
        other.take("node-1")


def test_workers_get_the_variables_that_decide_on_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    secrets = {"SECRET", "HF_TOKEN", "TORCH_HUB_TOKEN", "WEIGHTPAGER_SIGNING_KEY"}
    for name in secrets:
        monkeypatch.setenv(name, "1")
    assert environment()["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert not secrets & environment().keys()


def test_errors_arrive_as_they_were_raised() -> None:
    error = Failed.of(BundleFormatError("manifest.json", "tasks", 1, 2)).error()
    assert isinstance(error, BundleFormatError)
    assert (str(error), error.field) == ("manifest.json: tasks: expected 1, found 2", "tasks")
