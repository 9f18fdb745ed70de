"""Compiles on a real cluster of two workers: the same bundles, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import ray
import torch
import yaml
from safetensors.torch import load_file, save_file

import ray_jobs
import tiny
import weightpager as wp
from command import Command
from same_bundle import assert_same
from weightpager.compiler.pipeline import CompileInterrupted
from weightpager.errors import BundleFormatError, CompileError, ConfigError
from weightpager.ray.cluster import LOCAL
from weightpager.ray.cluster import cluster as joined_cluster
from weightpager.ray.workers import RayWorkers, on_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PAGE = (Path(__file__).parents[2] / "docs" / "ray.md").read_text(encoding="utf-8")
TRAINED = {
    "method": "finetune", "steps": 4, "batch": 8, "learning_rate": 3e-3,
    "private_blocks": 0.2, "private_steps": 3, "low_rank": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def cluster(ray_environment: None) -> Iterator[None]:
    """Two workers on this machine, apart from any cluster that runs on it."""
    with joined_cluster(LOCAL, num_cpus=2, object_store_memory=200 << 20):
        yield


@pytest.fixture
def workers(cluster: None) -> Iterator[RayWorkers]:
    with on_ray("auto") as found:
        yield found
    assert ray.is_initialized()  # it isn't ours to end


@pytest.mark.long
def test_the_example_of_the_page_runs(tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tiny.writer(tmp_path)), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(PAGE.split("```python\n")[1].split("```")[0], {"wp": wp})
    assert wp.Bundle.open("assistant.bundle").tasks


def test_a_bundle_is_the_one_of_a_serial_compile_whoever_dies(tmp_path: Path, workers: RayWorkers) -> None:
    content = tiny.assistant(tmp_path, recover=TRAINED, compare=True, alignment=0.5)
    told: dict[bool, set[tuple[str, int]]] = {True: set(), False: set()}

    def note(serial: bool, stage: str, done: int, total: int) -> None:
        told[serial] |= {(stage, total)} if done == total and "whole" not in stage else set()

    here = wp.compile(content, out=tmp_path / "here.bundle", progress=partial(note, True))
    mortal = ray_jobs.Killing(workers, tmp_path)
    there = wp.compile(content, out=tmp_path / "there.bundle", workers=mortal, progress=partial(note, False))
    assert_same(here.path, there.path)
    assert told[True] == told[False]  # every stage to its end
    assert (tmp_path / "died").exists()


DRIVER = """
import os, signal, sys
sys.path[:0] = {path!r}
import torch, yaml
torch.set_num_threads(1)
import weightpager as wp
from weightpager.ray.workers import on_ray

def told(stage, done, total):
    if (stage, done) == ({stage!r}, {done}):
        os.kill(os.getpid(), signal.SIGKILL)

with on_ray("auto") as workers:
    wp.compile("tasks.yaml", out="a.bundle", workers=workers, progress=told)
"""


@pytest.mark.long
def test_a_killed_driver_loses_nothing_that_was_kept(
    tmp_path: Path, workers: RayWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies once one task's private blocks are trained."""
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "100MB")
    monkeypatch.chdir(tmp_path)
    Path("tasks.yaml").write_text(yaml.safe_dump(tiny.assistant(tmp_path, recover=TRAINED)))
    script = DRIVER.format(path=sys.path, stage="private blocks", done=9)
    own = {**os.environ, "RAY_ADDRESS": "local"}  # a cluster of its own, which must end with it
    killed = subprocess.run([sys.executable, "-c", script], env=own, capture_output=True, text=True, timeout=300)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told: list[tuple[str, int]] = []
    wp.compile("tasks.yaml", out="a.bundle", workers=workers, progress=lambda name, at, _: told.append((name, at)))
    stages = {name for name, _ in told}
    assert not stages & {
        "train the dense model",
        *(f"measure dense {task}" for task in wp.Bundle.open("a.bundle").tasks),
    }
    assert "fine-tune" not in stages
    assert min(at for name, at in told if name == "private blocks") > 3  # at least one task's training was kept
    wp.compile("tasks.yaml", out="whole.bundle", cache=False)
    assert_same(tmp_path / "a.bundle", tmp_path / "whole.bundle")


def test_an_error_in_a_worker_is_the_serial_compiles(tmp_path: Path, workers: RayWorkers) -> None:
    content = tiny.writer(tmp_path)
    weights = Path(content["model"], "model.safetensors")
    tensors = load_file(weights)
    tensors["model.norm.weight"] *= 1e25  # finite, which squares of its gradients aren't
    save_file(tensors, weights, metadata={"format": "pt"})
    found = []
    for options in ({}, {"workers": workers}):
        with pytest.raises(CompileError, match=r"tasks\.animals: calibration of .* gave NaN or infinity") as error:
            wp.compile(content, out=tmp_path / "a.bundle", **options)
        found.append(str(error.value))
    assert found[0] == found[1]


@pytest.mark.long
def test_ctrl_c_ends_what_goes_on_and_says_what_is_kept(tmp_path: Path, workers: RayWorkers) -> None:
    content = tiny.assistant(tmp_path)

    def interrupted(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("calibrate", 1):
            raise KeyboardInterrupt

    with pytest.raises(CompileInterrupted, match=r"kept in .*: the dense model's training up to step 16\. The same"):
        wp.compile(content, out=tmp_path / "a.bundle", workers=workers, progress=interrupted)
    assert_same(
        wp.compile(content, out=tmp_path / "a.bundle", workers=workers).path,
        wp.compile(content, out=tmp_path / "b.bundle").path,
    )


def test_a_real_ctrl_c_reaches_who_waits_for_workers(tmp_path: Path, workers: RayWorkers) -> None:
    marker = tmp_path / "begun"

    def press() -> None:
        end = time.monotonic() + 100
        while not marker.exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    presses = threading.Thread(target=press)
    presses.start()
    with pytest.raises(KeyboardInterrupt):
        list(workers.each({"a": partial(ray_jobs.waits, marker)}, ray_jobs.quiet, 1))
    presses.join()
    assert marker.exists()
    values = torch.ones(3)
    (done,) = workers.each({"a": partial(ray_jobs.doubled, values)}, ray_jobs.quiet, 1)  # its CPU is free again
    assert done.value[0].tolist() == [2, 2, 2]
    assert values.tolist() == [1, 1, 1]


def test_jobs_that_share_values_each_have_their_own(workers: RayWorkers) -> None:
    values = torch.ones(100_000)
    done = list(workers.each({n: partial(ray_jobs.doubled, values) for n in range(4)}, ray_jobs.quiet, 1))
    assert sorted(one.key for one in done) == [0, 1, 2, 3]
    assert all((one.value[0] == 2).all() for one in done)
    assert all(one.value[1] != os.getpid() for one in done)
    assert (values == 1).all()


def test_of_several_errors_the_first_jobs_is_raised(workers: RayWorkers) -> None:
    values = torch.ones(2)
    jobs = {
        "a": partial(ray_jobs.doubled, values),
        "b": partial(ray_jobs.refused, "tasks.b: no", 2.0),
        "c": partial(ray_jobs.refused, "tasks.c: no", 0.0),
    }
    found = workers.each(jobs, ray_jobs.quiet, 1)
    assert next(found).key == "a"
    with pytest.raises(CompileError, match=r"^tasks\.b: no$"):
        next(found)


@pytest.mark.long
def test_other_errors_come_out_too(workers: RayWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weightpager.ray.workers.RETRIES", 1)
    with pytest.raises(BundleFormatError, match=r"^manifest\.json: tasks: expected 1, found 2$"):
        list(workers.each({"a": ray_jobs.damaged}, ray_jobs.quiet, 1))
    with pytest.raises(ZeroDivisionError, match="a mistake"):
        list(workers.each({"a": ray_jobs.mistaken}, ray_jobs.quiet, 1))
    expected = r"animal: expected a worker of the Ray cluster to end this job, found after 1 retries: .*without --ray"
    with pytest.raises(CompileError, match=expected):
        list(workers.each({"animal": ray_jobs.dies}, ray_jobs.quiet, 1))


@pytest.mark.long
def test_a_worker_has_the_drivers_threads_and_variables(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_TESTED", "yes")
    torch.set_num_threads(2)
    try:
        with on_ray("auto") as workers:
            (done,) = workers.each({"a": ray_jobs.facts}, ray_jobs.quiet, 1)
        assert done.value == (2, "yes")
        torch.set_num_threads(3)
        with pytest.raises(
            ConfigError, match=r"expected a machine with 3 CPUs, .* found at most 2; set OMP_NUM_THREADS"
        ):
            on_ray("auto").__enter__()
    finally:
        torch.set_num_threads(1)


@pytest.mark.long
def test_the_command_compiles_on_a_cluster(tmp_path: Path, cluster: None, weightpager: Command) -> None:
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(tiny.assistant(tmp_path)))
    done = weightpager("compile", tmp_path / "tasks.yaml", "--out", tmp_path / "a.bundle", "--ray", "auto")
    assert done.code == 0, done.err
    assert "Ray: up to 2 tasks at a time, each with 1 threads" in done.err
    assert "measure dense animal" in done.err
    assert "(pid=" not in done.err + done.out
