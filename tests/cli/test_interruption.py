"""Ctrl-C at any moment and full disks: the old bundle stays valid, nothing half-written appears."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from command import Command

import tiny
from weightpager.bundle.verify import verify

COMMAND = [sys.executable, "-c", "from weightpager.cli import main; main()"]


def compile_command(folder: Path, *more: str) -> list[str]:
    tasks = folder / "tasks.yaml"
    tasks.write_text(yaml.safe_dump(tiny.assistant(folder, training={"steps": 60, "batch": 8})))
    return [*COMMAND, "compile", str(tasks), "--out", str(folder / "a.bundle"), *more]


def interrupt(command: list[str], delay: float, number: int) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def bundles(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if "bundle" in name]


def duration(command: list[str]) -> float:
    start = time.monotonic()
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return time.monotonic() - start


@pytest.mark.slow
@pytest.mark.timeout(900)  # ten compiles, on whatever the machine has left
def test_ctrl_c_at_any_moment_leaves_the_old_bundle_and_what_was_trained(tmp_path: Path) -> None:
    command = compile_command(tmp_path, "--force")
    kept = tmp_path / ".a.bundle.resume"
    whole = duration(command)
    before = verify(tmp_path / "a.bundle")
    for _ in range(8):
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


@pytest.mark.slow
@pytest.mark.parametrize("size", ["4k", "40k", "120k"])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path: Path, size: str) -> None:
    command = compile_command(tmp_path)
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", disk], capture_output=True).returncode:
        pytest.skip("a file system of a few kilobytes cannot be mounted here")
    try:
        command[command.index("--out") + 1] = str(disk / "a.bundle")
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        # What has been trained is kept for the next try, whole entries only.
        assert os.listdir(disk) in ([], [".a.bundle.resume"])
        assert [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".safetensors"] == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_ctrl_c_says_where_to_go_on(tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> object:
        (tmp_path / ".a.bundle.resume" / "train.safetensors").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("weightpager.compiler.pipeline.prepare", interrupted)
    done = weightpager(*compile_command(tmp_path)[3:])
    assert done.code == 130
    assert f"is kept in {tmp_path / '.a.bundle.resume'}: the same command goes on" in done.err
