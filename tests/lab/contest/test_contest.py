"""A contest from top to bottom, in processes of their own."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import contests
from command import Command
from weightpager.bundle import Bundle
from weightpager.errors import ConfigError
from weightpager_lab.contest import run
from weightpager_lab.contest.plan import Plan, quick, usual_subject
from weightpager_lab.contest.result import Contest
from weightpager_lab.contest.rivals import assets
from weightpager_lab.contest.run import run_contest


def test_an_unknown_method_is_refused(assistant_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="expected one of ours"):
        run_contest(Plan(Bundle.open(assistant_bundle), methods=("theirs",)), lambda *_: None)


def test_what_cannot_be_measured_says_why(assistant_bundle: Path) -> None:
    bundle = Bundle.open(assistant_bundle)
    companions = ("ours_unaligned", "ours_all_blocks", "ours_one_mask")
    found = run_contest(Plan(bundle, quick=True, methods=(*companions, "dense_copied")), lambda *_: None)
    assert [row.status for row in found.rows] == ["skipped"] * 4
    for row, option in zip(found.rows, ("--unaligned", "--all-blocks", "--one-mask"), strict=False):
        assert row.reason.endswith(f"by {option}")
    assert found.rows[3].reason == "not part of --quick"
    assert found.scores_from == "the compile"
    assert not list(bundle.path.parent.glob(".weightpager-bench-*"))


def test_what_is_no_companion_is_refused(assistant_bundle: Path, writer_bundle: Path) -> None:
    bundle, other = Bundle.open(assistant_bundle), Bundle.open(writer_bundle)
    with pytest.raises(ConfigError, match="--unaligned .*: expected the tasks"):
        run_contest(Plan(bundle, {"unaligned": other}), lambda *_: None)
    with pytest.raises(
        ConfigError, match="--all-blocks .*: expected a bundle of all blocks, whose tasks need all pages"
    ):
        run_contest(Plan(bundle, {"all_blocks": bundle}), lambda *_: None)


def test_the_command_takes_companions(
    assistant_bundle: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def kept(plan: Plan, _progress: object) -> Contest:
        plans.append(plan)
        return contests.contest(contests.row("ours", contests.found(0.01)))

    monkeypatch.setattr("weightpager_lab.contest.run.run_contest", kept)
    weightpager("bench", assistant_bundle, "--all-blocks", assistant_bundle, "--one-mask", assistant_bundle)
    (plan,) = plans
    assert {name: bundle.path for name, bundle in plan.companions.items()} == {
        "all_blocks": assistant_bundle,
        "one_mask": assistant_bundle,
    }


def test_the_demos_bundle_brings_the_companions_beside_it(assistant_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "demo" / "key"
    folder.mkdir(parents=True)
    for name in ("aligned", "all-blocks"):
        (folder / f"{name}.bundle").symlink_to(assistant_bundle)
    subject = usual_subject(tmp_path, pytest.fail, quick=False)
    assert subject.bundle.path == folder / "aligned.bundle"
    (companion,) = subject.companions.items()
    assert (companion[0], companion[1].path.name) == ("all_blocks", "all-blocks.bundle")


def test_without_torch_a_bundle_has_to_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"install 'weightpager\[bench\]' to write random weights, or name a BUNDLE"):
        usual_subject(tmp_path, pytest.fail, quick=False)


def test_the_command_marks_rows_whose_limit_did_not_hold(
    assistant_bundle: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = contests.row("ours", contests.found(0.01))
    limit = "storage: unlimited: no io controller"
    whole = contests.row("sparse_whole", contests.found(0.12), unlimited=[limit])
    monkeypatch.setattr("weightpager_lab.contest.run.run_contest", lambda *_: contests.contest(ours, whole))
    done = weightpager("bench", assistant_bundle, "--storage", "300MB/s")
    assert "the sparse_whole*" in done.out
    assert "the ours*" not in done.out
    assert f"* no result under the limit: {limit}" in done.out


def test_the_command_writes_json_whatever_it_found(
    assistant_bundle: Path, tmp_path: Path, weightpager: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = contests.contest(contests.row("ours", contests.found(0.01)))
    contest = contest.model_copy(update={"figures": {"finite": 0.5, "endless": math.inf, "none": math.nan}})
    monkeypatch.setattr("weightpager_lab.contest.run.run_contest", lambda *_: contest)
    done = weightpager("bench", assistant_bundle, "--json", "--out", tmp_path / "bench.json")
    assert (done.code, (tmp_path / "bench.json").read_text()) == (0, done.out)
    found = json.loads(done.out, parse_constant=pytest.fail)
    assert found["figures"] == {"finite": 0.5, "endless": None, "none": None}


@pytest.mark.slow
def test_the_command_writes_what_it_found(assistant_bundle: Path, tmp_path: Path, weightpager: Command) -> None:
    out = tmp_path / "bench.json"
    done = weightpager(
        "bench", assistant_bundle, "--quick", "--cpus", "1", "--memory", "2GiB", "--out", out,
        "-m", "ours", "-m", "sparse_whole",
    )  # fmt: skip
    assert done.code == 0, done.err
    found = Contest.model_validate(json.loads(out.read_text()))
    assert found.row("ours") is not None
    assert found.row("sparse_whole") is not None
    assert found.figures["switch.speedup_whole_mean"] > 0
    assert found.machine["commit"]
    assert "switch.speedup_whole_mean" in done.out


@pytest.mark.slow
def test_what_does_not_fit_the_limit_is_a_result(assistant_bundle: Path, weightpager: Command, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    weightpager("bench", assistant_bundle, "--quick", "--memory", "64MiB", "--out", out, "-m", "sparse_strict")
    (row,) = Contest.model_validate(json.loads(out.read_text())).rows
    if row.unlimited:
        pytest.skip(row.unlimited[0])
    assert row.status == "failed"
    assert "killed for want of memory while it was set up: it needs more than 64.0 MiB" in row.reason
    assert row.set_up is False


@pytest.mark.parametrize("arguments", [(28, "No space left on device"), ("No space left",)])
def test_checkpoints_need_a_place_to_be_written(
    assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[object, ...]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(*arguments)

    monkeypatch.setattr(assets, "write_sparse", full)
    plan = Plan(Bundle.open(assistant_bundle), quick=True, methods=("sparse_strict",))
    with pytest.raises(ConfigError, match="beside it: No space left"):
        run_contest(plan, lambda *_: None)


def test_a_process_that_cannot_be_started_is_a_result(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(run, "run_limited", refused)
    found = run_contest(Plan(Bundle.open(assistant_bundle), quick=True, methods=("ours",)), lambda *_: None)
    assert {row.status for row in found.rows} == {"failed"}
    assert {row.reason for row in found.rows} == {"no process can be started: Resource temporarily unavailable"}


def test_a_quick_contest_ends_in_time(assistant_bundle: Path) -> None:
    plan = quick(Plan(Bundle.open(assistant_bundle), methods=("ours", "sparse_strict")))
    late = replace(plan, end=time.monotonic())
    found = run_contest(late, lambda *_: None)
    assert {row.reason for row in found.rows} == {"no time was left for it within --quick"}
    assert plan.tasks == list(plan.bundle.tasks)
