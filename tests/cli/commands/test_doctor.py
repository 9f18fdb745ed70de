"""``weightpager doctor`` as a command."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from command import Command
from weightpager import kernels
from weightpager.doctor import storage
from weightpager.doctor.kernels import Values
from weightpager.doctor.machine import Bandwidth
from weightpager.kernels import PagedWeight
from weightpager.kernels.torch import isa, reference
from weightpager.machine.storage import mount_of

NATIVE = kernels.available() != ("reference",)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure with little: the figures are of no interest here."""
    monkeypatch.delenv("WEIGHTPAGER_ISA", raising=False)
    monkeypatch.setattr(storage, "_MOST", 1 << 20)
    monkeypatch.setattr(storage, "_PIECE", 1 << 20)
    monkeypatch.setattr(storage, "_MOST", 1 << 20)


def last_line(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_a_sound_machine_is_ready(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("doctor", "--path", tmp_path)
    assert found.code == 0
    for title in ("processor", "kernels", "memory", "storage", "self-test"):
        assert title in found.out
    for name in kernels.available():
        assert f"│ {name} " in found.out
    assert "products wrong" not in found.out
    assert last_line(found.out).startswith("ready")
    assert "self-test of reference" in found.err
    storage_of = json.loads(weightpager("doctor", "--path", tmp_path, "--json").out)["storage"]
    if storage_of["short"] is not None and not storage_of["short"]["doubt"]:
        assert " ms a read" in found.out
        said = re.search(r"next: (weightpager plan BUNDLE --worst --storage \S+MB/s --read-latency \S+ms)", found.err)
        assert said is not None
    assert os.listdir(tmp_path) == []


def test_json_tells_the_same(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("doctor", "--path", tmp_path, "--json")
    assert (found.code, found.err) == (0, "")
    told = json.loads(found.out)
    assert told["ready"] is True
    assert told["verdict"].startswith("ready")
    assert told["kernels"]["available"] == list(kernels.available())
    assert told["kernels"]["chosen"] == kernels.isa()
    assert told["kernels"]["asked"] is None
    assert told["kernels"]["gpu"] == (isa("cuda") if torch.cuda.is_available() else None)
    assert told["storage"]["directory"] == str(tmp_path)
    assert [test["kernel"] for test in told["self_tests"]] == list(kernels.available())
    assert all(test["failures"] == [] for test in told["self_tests"])
    assert told["memory"]["total_bytes"] > 0
    assert told["memory"]["reads"]
    assert all(read["bytes_per_second"] > 0 for read in told["memory"]["reads"])
    assert told["processor"]["usable_cores"] >= 1


@pytest.mark.slow
def test_a_kernel_that_computes_wrongly_is_reported(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not NATIVE:
        pytest.skip("the native kernels are not built")
    from weightpager.kernels import native

    real = native.paged_linear

    def wrong(x: Values, weight: PagedWeight, bias: Values | None, isa: int, threads: int) -> Values:
        y = real(x, weight, bias, isa, threads)
        return y if isa else y ^ 0x8000 if y.dtype == np.uint16 else -y

    monkeypatch.setattr(native, "paged_linear", wrong)
    best = kernels.available()[0]
    found = weightpager("doctor", "--path", tmp_path)
    assert found.code == 1
    assert "products wrong" in found.out
    assert f"{best}: 1 float32 tokens, bfloat16 blocks of 16x32: expected a relative error below" in found.err
    assert last_line(found.out).startswith(f"not ready: {best} failed the self-test; set WEIGHTPAGER_ISA=")
    told = weightpager("doctor", "--path", tmp_path, "--json")
    assert told.code == 1
    document = json.loads(told.out)
    assert document["ready"] is False
    assert [test["kernel"] for test in document["self_tests"] if test["failures"]] == [best]


def test_a_wrong_reference_is_reported(weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "paged_linear", lambda x, weight, bias=None: x.float() @ x.float().T)
    found = weightpager("doctor", "--path", tmp_path)
    assert found.code == 1
    assert "install another version of torch" in last_line(found.out)


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in kernels.available(), reason="this machine has no avx2 kernel")
def test_the_kernel_that_the_environment_names_is_the_one(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_ISA", "avx2")
    told = json.loads(weightpager("doctor", "--path", tmp_path, "--json").out)["kernels"]
    assert (told["chosen"], told["asked"], told["exact"]) == ("avx2", "avx2", "avx2")
    assert "avx2 (named by WEIGHTPAGER_ISA)" in weightpager("doctor", "--path", tmp_path).out


def test_a_kernel_that_cannot_run_is_explained(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_ISA", "sse9")
    found = weightpager("doctor", "--path", tmp_path)
    assert found.code == 2
    assert "WEIGHTPAGER_ISA: expected one of" in found.err


def test_a_path_that_does_not_exist_is_explained(weightpager: Command, tmp_path: Path) -> None:
    found = weightpager("doctor", "--path", tmp_path / "nowhere")
    assert found.code == 2
    assert f"{tmp_path / 'nowhere'}: No such file or directory" in found.err
    assert "Traceback" not in found.err


def test_storage_that_cannot_be_measured_is_no_failure(
    weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "probe_bytes", lambda free: 0)
    found = weightpager("doctor", "--path", tmp_path)
    assert found.code == 0
    assert "note: too little space" in found.out
    assert "storage was not measured (too little space" in last_line(found.out)


def without(modules: list[str], path: Path) -> subprocess.CompletedProcess[str]:
    """What the command says where these can't be imported."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({modules!r}))\n"
        "from weightpager.doctor import storage\n"
        "storage._MOST_READ = storage._PIECE = storage._MOST = 1 << 20\n"
        f"sys.argv = ['weightpager', 'doctor', '--path', {str(path)!r}]\n"
        "from weightpager.cli import main; main()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_missing_native_module_is_said_with_what_to_do(tmp_path: Path) -> None:
    found = without(["weightpager.kernels._native"], tmp_path)
    assert found.returncode == 0, found.stderr
    assert "missing: " in found.stdout
    assert "ready, but slow without the native kernels: install a C++ compiler" in last_line(found.stdout)


def test_a_machine_without_any_kernel_is_not_ready(tmp_path: Path) -> None:
    found = without(["weightpager.kernels._native", "torch"], tmp_path)
    assert found.returncode == 1, found.stderr
    assert "torch isn't installed" in found.stdout
    assert "torch sees none" not in found.stdout
    assert last_line(found.stdout).startswith("not ready: no kernel can run here; ")


def test_the_environment_names_a_path(weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_DOCTOR_PATH", str(tmp_path))
    assert json.loads(weightpager("doctor", "--json").out)["storage"]["directory"] == str(tmp_path)


def test_direct_reads_that_are_not_are_doubted(weightpager: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Path("/dev/shm")
    if not memory.is_dir() or mount_of(memory).kind != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    monkeypatch.setattr(os, "O_DIRECT", 0)  # which tmpfs refuses before Linux 6.6
    found = weightpager("doctor", "--path", memory)
    assert "accepted, but see the note" in found.out
    assert "note: tmpfs keeps its files in memory; not direct" in found.out


@pytest.mark.slow
def test_busy_cores_are_noted(weightpager: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    seconds = {1: 1.0, 2: 3.0}
    monkeypatch.setattr(
        storage, "kernel_read_bandwidth", lambda size, threads: Bandwidth(size, size, threads, (seconds[threads],))
    )
    assert "note: 2 threads read slower than one" in weightpager("doctor", "--path", tmp_path).out
    seconds[2] = 0.5
    assert "slower than one" not in weightpager("doctor", "--path", tmp_path).out
