"""The demo, whole: real model, real tasks. What the README promises of it is checked here."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from command import Command
from weightpager.bundle import Bundle
from weightpager.compiler.pipeline import CompileInterrupted
from weightpager.compiler.resume.journal import CompileRun
from weightpager_lab.demo import cold_switches, compiled, run
from weightpager_lab.demo import page as plots
from weightpager_lab.demo.page import render
from weightpager_lab.demo.result import OURS, DemoResult, DemoSwitch, DemoTask, Resident
from weightpager_lab.machine_facts import describe
from weightpager_lab.samples import SampleUnavailable
from weightpager_lab.samples.sample import Missing, Sample


def made_up() -> DemoResult:
    """Values for looking at the page's form only."""
    names = ["spam", "topic"]
    return DemoResult(
        tasks=[
            DemoTask(
                name=name, metric="accuracy", items=9, dense=0.9, sparse=0.88, shared_mask=0.8, int8=0.9, int4=0.85
            )
            for name in names
        ],
        switches=[
            DemoSwitch(
                from_task=a,
                to_task=b,
                bytes=4096,
                ms=2.0,
                gbps=1.0,
                whole_sparse_bytes=40960,
                whole_sparse_ms=10.0,
                own_checkpoint_bytes=80960,
                own_checkpoint_ms=20.0,
                dense_ms=30.0,
            )
            for a, b in (names, names[::-1])
        ],
        memory=[
            Resident(name=OURS, bytes=5, paged_bytes=3, mean_bytes_per_switch=1, mean_metric=0.88, ms_per_switch=0.5),
            Resident(name="<b>theirs</b>", bytes=9, paged_bytes=5, mean_bytes_per_switch=0, mean_metric=0.9),
            Resident(name="dense in int2", bytes=7, paged_bytes=5, mean_bytes_per_switch=0, mean_metric=0.5),
        ],
        overlap=[[1.0, 0.8], [0.7, 1.0]],
        mean_overlap=0.75,
        mean_overlap_unaligned=0.6,
        duality_gap=0.0,
        budget=100,
        sparsity=0.3,
        dtype="int4",
        alignment=0.5,
        training_steps=240,
        recover_steps=120,
        page_bytes=4096,
        page_fill=0.99,
        dense_checkpoint_bytes=1000,
        cold=True,
        cold_note="",
        repeats=5,
        missing={"pos": "npm is missing"},
        compile_seconds={"align": 0.5},
        seconds=1.0,
        machine=describe(),
        figures={"memory.weights_vs_best_rival": 0.4},
        verdict="Memory: <i>ours</i> wins.",
    )


def test_the_page_is_self_contained_and_escapes_what_it_shows() -> None:
    machine = {"isa": ["avx2", "fma"], "versions": {"numpy": "2.0", "torch": None}}
    page = render(made_up().model_copy(update={"backend": "native", "machine": machine}))
    assert page.count("<svg") == 5
    assert "5.0 ×" in page
    assert "15.0 ×" in page
    assert "<b>theirs</b>" not in page
    assert "&lt;i&gt;ours&lt;/i&gt; wins" in page
    assert "npm is missing" in page
    assert "ten points or more below" in page
    assert "intervals.\nweightpager's were measured with the native backend." in page
    assert "<td>avx2, fma</td>" in page
    assert "<td>numpy 2.0, torch unknown</td>" in page
    for explained in (
        "duality gap of the alignment: how far",
        "λ: what a block loaded per switch costs",
        "An arena is",
    ):
        assert explained in page
    widths = [float(width) for width in re.findall(r'<svg[^>]* width="([\d.]+)pt"', page)]
    assert len(widths) == 5
    assert max(widths) < 350  # points: at 390 pixels letters keep three quarters of their size, and more
    for outside in ('src="http', 'href="http', "<script", "@import"):
        assert outside not in page.replace("http://www.w3.org", "")


def test_labels_of_crowded_points_lie_apart() -> None:
    points = [(3.9, 0.789), (5.1, 0.789), (13.2, 0.789), (13.2, 0.789), (16.2, 0.796), (17.5, 0.798), (43.4, 0.803)]
    labels = [str(number) for number in range(8, 15)]
    offsets = plots.label_offsets([*points, (4.0, 0.753)], [*labels, "15"])
    assert all(math.hypot(*offset) < 30 for offset in offsets)
    width, height = (axis / span for axis, span in zip((250, 150), (43.4, 0.803 - 0.753), strict=True))
    places = [(x * width + dx, y * height + dy) for (x, y), (dx, dy) in zip(points, offsets, strict=False)]
    for (x, y), (other_x, other_y) in itertools.combinations(places, 2):
        assert abs(x - other_x) > 13 or abs(y - other_y) > 9


def test_the_json_says_from_and_to() -> None:
    document = json.loads(json.dumps(made_up().document()))
    assert document["switches"][0]["from"] == "spam"
    assert document["switches"][0]["to"] == "topic"
    assert {"bytes", "ms", "gbps", "whole_sparse_ms", "dense_ms"} <= document["switches"][0].keys()
    assert {"name", "metric", "dense", "sparse"} <= document["tasks"][0].keys()


@pytest.mark.slow
def test_the_table_says_how_many_tasks_there_were_and_whether_they_were_cold(
    monkeypatch: pytest.MonkeyPatch, weightpager: Command, tmp_path: Path
) -> None:
    for cold, title in ((True, "2 tasks at 30% sparsity; switches to each task, cold,"), (False, "each task, mean")):
        result = made_up().model_copy(update={"cold": cold, "cold_note": "" if cold else "tmpfs"})
        monkeypatch.setattr("weightpager_lab.demo.run_demo", lambda *_, result=result: result)
        found = weightpager("demo", "--out", tmp_path / "page.html")
        assert found.code == 0, found.err
        assert title in " ".join(found.out.split())


def test_the_last_line_is_a_command_that_works(
    monkeypatch: pytest.MonkeyPatch, weightpager: Command, tmp_path: Path, assistant_bundle: Path
) -> None:
    result = made_up().model_copy(update={"bundle": str(assistant_bundle), "budget": 2**20})
    monkeypatch.setattr("weightpager_lab.demo.run_demo", lambda *_: result)
    monkeypatch.setattr(shutil, "which", lambda _: None)  # as where nobody has activated the environment
    last = weightpager("demo", "--out", tmp_path / "page.html").err.splitlines()[-1]
    assert last == f"next: weightpager serve {assistant_bundle} --budget 1.0MiB"
    busy = socket.create_server(("127.0.0.1", 0))
    with busy:  # read to its end: only the port is refused
        refused = weightpager(*shlex.split(last)[2:], "--port", busy.getsockname()[1])
    assert "expected a free port" in refused.err


def test_ctrl_c_says_what_is_kept(monkeypatch: pytest.MonkeyPatch, weightpager: Command, tmp_path: Path) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    for error, words in (
        (KeyboardInterrupt(), f"interrupted; what was downloaded and compiled stays in {tmp_path / 'cache'}"),
        (CompileInterrupted("interrupted; kept: training"), "interrupted; kept: training"),
    ):

        def interrupted(*_: object, error: KeyboardInterrupt = error) -> None:
            raise error

        monkeypatch.setattr("weightpager_lab.demo.run_demo", interrupted)
        found = weightpager("demo", "--out", tmp_path / "page.html")
        assert (found.code, found.err.strip()) == (130, words)


def test_a_compile_of_the_demo_that_is_interrupted_says_what_its_journal_keeps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(_: object, compile_run: CompileRun, **__: object) -> None:
        compile_run.journal.write("training", 2, {"weight": torch.ones(2)})
        raise KeyboardInterrupt

    monkeypatch.setattr(compiled, "from_dict", lambda _: None)
    monkeypatch.setattr(compiled, "compile_identity", lambda _: "identity")
    monkeypatch.setattr(compiled, "prepare", interrupted)
    with pytest.raises(CompileInterrupted, match=rf"kept in {tmp_path / 'journal'}"):
        compiled._compile({}, tmp_path, lambda *_: None)


def test_a_single_task_is_refused_before_anything_is_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = Sample("spam", "text-classification", ("a", "b"), tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(run, "minilm", lambda _cache: tmp_path)
    monkeypatch.setattr(run, "prepare", lambda *_, **__: ([alone], [Missing("topic", "pip failed")]))
    with pytest.raises(SampleUnavailable, match=r"two tasks to switch between, got spam alone:\n  topic: pip failed"):
        run.run_demo(tmp_path, lambda *_: None)


BUNDLES = ("aligned.bundle", "a-tenth-of-the-blocks.bundle", "half-of-the-blocks.bundle")


def test_a_cache_without_the_dense_checkpoint_is_no_cache(assistant_bundle: Path, tmp_path: Path) -> None:
    for name in BUNDLES:
        (tmp_path / name).symlink_to(assistant_bundle)
    (tmp_path / "unaligned.json").write_text("0.5", encoding="utf-8")
    with pytest.raises(FileNotFoundError):
        compiled._open(tmp_path)
    (tmp_path / "dense.safetensors").touch()
    assert compiled._open(tmp_path).unaligned_overlap == 0.5


def test_what_another_process_has_compiled_meanwhile_is_not_compiled_again(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It ended after this one had looked for it, and before this one held the folder."""

    def ended(_: object) -> str:
        for name in BUNDLES:
            (tmp_path / name).symlink_to(assistant_bundle)
        compiled._keep(tmp_path, {"weight": torch.ones(2)}, 0.5)
        return "identity"

    monkeypatch.setattr(compiled, "from_dict", lambda _: None)
    monkeypatch.setattr(compiled, "compile_identity", ended)
    monkeypatch.setattr(compiled, "prepare", lambda *_, **__: pytest.fail("compiled again"))
    assert compiled._compile({}, tmp_path, lambda *_: None).unaligned_overlap == 0.5


def test_the_dense_checkpoint_is_on_the_disk_before_the_cache_is_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    synced: list[tuple[str, bool]] = []
    whole = tmp_path / "unaligned.json"
    monkeypatch.setattr(compiled, "sync", lambda path: synced.append((path.name, whole.exists())))
    compiled._keep(tmp_path, {"weight": torch.ones(2)}, 0.5)
    assert synced == [("dense.safetensors", False)]
    assert whole.read_text() == "0.5"


def test_a_cache_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, weightpager: Command, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "file" / "cache"))
    found = weightpager("bench", "--quick")
    assert found.code == 2
    assert "cannot write random weights" in found.err

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "cache")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(SampleUnavailable, match="cannot be written: Permission denied; name another cache"):
        cold_switches._read_rivals(cast(Bundle, SimpleNamespace(path=tmp_path / "a.bundle")), tmp_path / "file")


def as_a_user(*arguments: object) -> str:
    """What the command prints without what tests set for tiny models: with tiles, it takes half as long."""
    ours = ("ONEDNN_MAX_CPU_ISA", "WEIGHTPAGER_BACKEND", "WEIGHTPAGER_CACHE_LIMIT")
    alone = {name: value for name, value in os.environ.items() if name not in ours}
    command = [sys.executable, "-m", "weightpager", *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, env=alone)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_reaches_what_it_promises(users_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(users_cache))
    result = json.loads(as_a_user("demo", "--json", "--out", tmp_path / "page.html"))
    tasks = result["tasks"]

    def mean(field: str) -> float:
        return float(sum(task[field] for task in tasks) / len(tasks))

    assert len(tasks) + len(result["missing"]) == 6
    assert mean("dense") > 0.75
    assert mean("dense") - mean("sparse") <= 0.03
    # Three quarters of the weights are gone: here tasks need masks of their own.
    assert mean("sparse") > mean("shared_mask")
    assert result["mean_overlap"] > result["mean_overlap_unaligned"]
    assert result["duality_gap"] <= 0.001
    assert len(result["switches"]) == len(tasks) * (len(tasks) - 1)
    assert all(0 < switch["bytes"] < switch["whole_sparse_bytes"] for switch in result["switches"])
    loaded, reloaded = (sum(switch[key] for switch in result["switches"]) for key in ("bytes", "whole_sparse_bytes"))
    assert loaded < reloaded / 2
    assert result["figures"]["memory.weights_vs_best_of_other_tools"] <= 0.4
    assert result["figures"]["memory.weights_vs_best_rival"] <= 0.6  # a bundle of all blocks, which has our row tables
    assert result["verdict"].startswith("Memory: weightpager wins")
    assert "<svg" in (tmp_path / "page.html").read_text()
    assert (users_cache / "demo").is_dir()
