"""Ctrl-C at any moment and full disks: the old bundle stays valid, nothing half-written appears."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import pytest
import yaml
from pydantic import BaseModel, PlainSerializer

import tiny
from command import Command
from weightpager.backends.verify import verify

COMMAND = [sys.executable, "-m", "weightpager"]


def compile_command(folder: Path, *more: str) -> list[str]:
    tasks = folder / "tasks.yaml"
    tasks.write_text(yaml.safe_dump(tiny.assistant(folder, training={"steps": 60, "batch": 8})))
    return [*COMMAND, "compile", str(tasks), "--out", str(folder / "a.bundle"), *more]


def interrupt(command: list[str], delay: float, number: int) -> subprocess.CompletedProcess[str]:
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=240)  # a process in the background ignores Ctrl-C, and goes on
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def bundles(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if "bundle" in name]


def duration(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.timeout(600)  # five compiles, on whatever the machine has left
def test_ctrl_c_at_any_moment_leaves_the_old_bundle_and_what_was_trained(tmp_path: Path) -> None:
    command = compile_command(tmp_path, "--force")
    kept = tmp_path / ".a.bundle.resume"
    whole = duration(command)
    before = verify(tmp_path / "a.bundle")
    for _ in range(3):
        ended = interrupt(command, random.uniform(0, whole), signal.SIGINT)
        # Torch may abort when it is interrupted while it is imported.
        in_torch = ended.returncode == -signal.SIGABRT and "pybind11::error_already_set" in ended.stderr
        assert in_torch or ended.returncode in (0, 130, -signal.SIGINT), ended.stderr
        # Before our code runs, it is Python that is interrupted while it imports, or before it has begun to.
        assert "Traceback" not in ended.stderr or "import" in ended.stderr or ended.stderr.count("  File ") == 1
        assert set(bundles(tmp_path)) <= {"a.bundle", kept.name}
        assert kept.is_dir() or "is kept in" not in ended.stderr
        assert [path for path in kept.rglob("*") if path.is_file() and path.suffix != ".safetensors"] == []
        assert verify(tmp_path / "a.bundle").problems == before.problems == ()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert bundles(tmp_path) == ["a.bundle"]


def test_ctrl_c_that_a_library_makes_an_error_of_is_still_an_interruption(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> str:
        signal.raise_signal(signal.SIGINT)
        return str(path)

    class Settings(BaseModel):
        model: Annotated[Path, PlainSerializer(interrupted)] = tmp_path

    monkeypatch.setattr("weightpager.compiler.pipeline.compile_identity", lambda _: Settings().model_dump_json())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # processes in the background ignore Ctrl-C
    try:
        done = weightpager(*compile_command(tmp_path)[3:])
        assert (done.code, "Traceback" in done.err) == (130, False)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "40k", "120k"])
@pytest.mark.parametrize("told", [True, False])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch, size: str, told: bool
) -> None:
    command = compile_command(tmp_path)[3:]
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True).returncode:
        pytest.skip("a file system of a few kilobytes cannot be mounted here")
    try:
        command[command.index("--out") + 1] = str(disk / "a.bundle")
        if not told:  # as with quotas
            monkeypatch.setattr("weightpager.compiler.storage_estimate.free_bytes", lambda _: None)
        done = weightpager(*command)
        assert done.code == 1
        assert ("of free storage" if told else "No space left") in done.err
        assert ("train the dense model" in done.err) is not told
        # What has been trained is kept for the next try, whole entries only.
        assert os.listdir(disk) in ([], [".a.bundle.resume"])
        assert [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".safetensors"] == []
    finally:
        subprocess.run(["umount", disk], check=True)


def interrupted_at(monkeypatch: pytest.MonkeyPatch, stage: str, step: int) -> None:
    """Ctrl-C as soon as a stage has made so many steps."""
    from weightpager.compiler.time_left import WholeProgress

    tell = WholeProgress.__call__

    def told(self: WholeProgress, name: str, done: int, total: int) -> None:
        tell(self, name, done, total)
        if (name, done) == (stage, step):
            raise KeyboardInterrupt

    monkeypatch.setattr(WholeProgress, "__call__", told)


@pytest.mark.slow
def test_ctrl_c_says_what_is_kept_and_where_to_go_on(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = compile_command(tmp_path)[3:]
    with monkeypatch.context() as patch:
        interrupted_at(patch, "train the dense model", 3)  # far sooner than the first entry would be due
        done = weightpager(*command)
    assert done.code == 130
    assert f"kept in {tmp_path / '.a.bundle.resume'}: the dense model's training up to step 3." in done.err
    assert "The same command goes on from there; what is not named is done again" in done.err
    again = weightpager(*command)
    assert (again.code, again.err.count("the dense model's training: goes on from step 3")) == (0, 1)


def test_ctrl_c_before_there_is_anything_to_keep_says_so(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr("weightpager.compiler.pipeline.prepare", interrupted)
    command = compile_command(tmp_path)[3:]
    done = weightpager(*command)
    assert done.code == 130
    assert "interrupted; nothing was trained that could be kept: begin again" in done.err
    assert bundles(tmp_path) == []
    kept = tmp_path / ".a.bundle.resume"
    (kept / "dense").mkdir(parents=True)
    (kept / "dense" / "train.safetensors").touch()
    assert f"interrupted; what earlier runs have kept stays in {kept}" in weightpager(*command).err


@pytest.mark.slow
def test_what_another_compile_left_is_not_claimed(
    tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = compile_command(tmp_path)[3:]
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(tasks.read_text() + "recover: {method: finetune, steps: 12, batch: 8}\n")
    with monkeypatch.context() as patch:
        interrupted_at(patch, "fine-tune", 5)
        assert "fine-tuning up to step 5" in weightpager(*command).err
    tasks.write_text(tasks.read_text().replace("sparsity: 0.6", "sparsity: 0.5"))
    with monkeypatch.context() as patch:
        interrupted_at(patch, "calibrate", 1)
        done = weightpager(*command)
    assert "the dense model's training up to step 60" in done.err  # which doesn't depend on sparsity
    assert "fine-tuning" not in done.err
    done = weightpager(*command)
    assert done.code == 0
    other = tmp_path / ".a.bundle.resume" / "finetune.safetensors"
    assert f"{other}: of a compile with other settings, data, version or threads; begins again" in done.err
