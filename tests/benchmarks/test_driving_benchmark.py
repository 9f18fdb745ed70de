"""The driving domain's bundles, tiny: those of the accuracy study, and named so that nobody takes them for real."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import tiny_llava
from benchmarks.accuracy import __main__ as accuracy
from benchmarks.accuracy.settings import effort_of
from benchmarks.drive import TASK_OF, visits
from benchmarks.driving import NAME, compiled_with, subject
from benchmarks.prefetch import __main__ as prefetch
from benchmarks.prefetch.rows import DRIVING, shares
from benchmarks.readme import ROOT
from benchmarks.report import results_file, run
from benchmarks.report.reasons import reasons
from contests import contest, found, row
from weightpager_lab.companions import COMPANIONS, check
from weightpager_lab.contest.figures import figures
from weightpager_lab.contest.plan import Plan
from weightpager_lab.contest.result import Limits
from weightpager_lab.contest.run import run_contest
from weightpager_lab.samples.driving_questions import QUESTIONS
from weightpager_lab.traces import DRIVE


def test_every_kind_of_road_asks_for_a_task() -> None:
    assert set(TASK_OF) == set(DRIVE.tasks)
    assert set(TASK_OF.values()) == set(QUESTIONS)


def test_the_trace_has_switches_only() -> None:
    drive = visits()
    assert all(a.task != b.task and a.start < b.start for a, b in pairwise(drive))
    assert min(Counter(visit.task for visit in drive).values()) > 50


def test_the_name_says_what_it_is() -> None:
    assert any(NAME.startswith(domain) for domain in run.DOMAINS)
    assert "rendered" in NAME
    assert "trained here" in next(note for domain, note in run.NOTES.items() if NAME.startswith(domain))
    assert "=" not in NAME
    assert NAME in results_file.read(ROOT / "docs" / "results.json").contests


def test_switches_that_read_nothing_miss_their_figure_without_a_reason() -> None:
    read = found(0.01)
    nothing = read.model_copy(update={"samples": [sample.model_copy(update={"bytes": 0}) for sample in read.samples]})
    limits = Limits(memory=None, storage=300_000_000, cpus=2)
    measured = contest(row("ours", nothing), row("sparse_whole", read), limits=limits)
    missed = measured.model_copy(update={"figures": figures(measured)})
    assert missed.figures["switch.speedup_whole_mean"] == 1
    assert reasons({NAME: missed}) == []


def test_the_bundle_is_that_of_the_accuracy_study() -> None:
    ours, others = compiled_with(effort_of("E", quick=False))
    assert ours.bundle_name == "ours_int4-0.14-closed-form.bundle"
    assert {name: setting.bundle_name for name, setting in others.items()} == {
        "unaligned": "unaligned-0.14-none.bundle",
        "all_blocks": "all_blocks_int4-0.281-closed-form.bundle",
        "one_mask": "shared_mask_int4-0.14-closed-form.bundle",
    }
    assert list(others) == list(COMPANIONS)
    assert others["unaligned"].density == ours.density
    assert others["unaligned"].dtype == "int4"


@pytest.mark.long
def test_bundles_are_made_once_and_serve_the_contest_and_the_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "1GiB")  # which keeps where the held-out pictures lie
    model = tiny_llava.llava(tmp_path / "llava")
    tasks = {name: tiny_llava.asking(tmp_path, name, {"red": "cat", "blue": "dog"}, 8) for name in QUESTIONS}

    def tiny_tasks(*_: object) -> tuple[dict[str, dict[str, Any]], list[object]]:
        return tasks, []

    monkeypatch.setattr(accuracy, "_model", lambda *_: model)
    monkeypatch.setattr(accuracy, "_tasks", tiny_tasks)
    said: list[str] = []
    made = subject(tmp_path / "bundles", lambda stage, done, total: said.append(stage), quick=True)
    assert list(made.bundle.tasks) == list(QUESTIONS)
    assert list(made.companions) == list(COMPANIONS)
    check(made.bundle, made.companions)
    assert made.companions["unaligned"].manifest.alignment == 0
    count = len(said)
    subject(tmp_path / "bundles", lambda stage, done, total: said.append(stage), quick=True)
    assert len(said) == count

    methods = ("ours", "sparse_whole", "sparse_language")
    plan = Plan(made.bundle, made.companions, repeats=1, seconds=1.0, visits=3, rooms=(), methods=methods)
    measured = run_contest(plan, lambda *_: None)
    assert {each.method: each.reason for each in measured.rows} == dict.fromkeys(methods, "")
    assert {each.found.prompts for each in measured.rows if each.found} == {"held-out"}
    assert measured.figures["switch.speedup_language_mean"] > 0

    monkeypatch.setattr(prefetch, "REAL", 8)
    rows = list(prefetch.of_driving(made.bundle))
    assert {each.trace for each in rows} == {DRIVING}
    assert shares(rows).keys() <= {f"prefetch.{DRIVING}.wait_share"}
