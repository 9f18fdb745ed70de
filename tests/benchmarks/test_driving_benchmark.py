"""The driving domain's bundle, tiny: made, and named so that nobody takes it for the real world."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.driving import NAME, TASK_OF, bundles, visits
from benchmarks.readme import ROOT
from benchmarks.report import results_file, run
from parity import other_classes
from weightpager.bundle.report.compile_report import read_report
from weightpager_lab.companions import COMPANIONS, check
from weightpager_lab.samples.road_scene import CLASSES
from weightpager_lab.traces import DRIVE


def test_every_kind_of_road_asks_for_a_task() -> None:
    assert set(TASK_OF) == set(DRIVE.tasks)
    assert set(TASK_OF.values()) == set(CLASSES)


def test_the_trace_has_switches_only() -> None:
    found = visits()
    assert all(a.task != b.task and a.start < b.start for a, b in pairwise(found))
    assert min(Counter(visit.task for visit in found).values()) > 50


def test_the_name_says_what_it_is() -> None:
    assert any(NAME.startswith(domain) for domain in run.DOMAINS)
    assert "rendered" in NAME
    assert "trained here" in next(note for domain, note in run.NOTES.items() if NAME.startswith(domain))
    assert "=" not in NAME
    assert NAME in results_file.read(ROOT / "docs" / "results.json").contests


@pytest.mark.slow
def test_bundles_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1GiB")  # which keeps where the held-out images lie
    said: list[str] = []
    made = bundles(tmp_path, lambda stage, done, total: said.append(stage), quick=True)
    aligned, unaligned, all_blocks = made.bundle, made.companions["unaligned"], made.companions["all_blocks"]
    assert list(aligned.tasks) == list(CLASSES)
    assert list(made.companions) == list(COMPANIONS)
    check(aligned, made.companions)
    found = other_classes(aligned)  # native code's, of all held-out images
    assert not any(found.values()), found
    assert unaligned.manifest.alignment == 0
    assert made.companions["one_mask"].manifest.alignment is None
    assert {len(all_blocks.kept_locations(task)) * all_blocks.block_bytes for task in CLASSES} == {
        all_blocks.dense_bytes
    }
    assert read_report(all_blocks).recover == "none"
    matrix = np.array(aligned.manifest.transitions)
    assert np.array_equal(matrix, unaligned.manifest.transitions)
    assert matrix.max() > 0.5  # a drive isn't uniform
    count = len(said)
    bundles(tmp_path, lambda stage, done, total: said.append(stage), quick=True)
    assert len(said) == count
