"""How much longer a whole compile takes, under a clock that is set by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

import tiny
import weightpager as wp
from weightpager.compiler import controls
from weightpager.compiler.time_left import WHOLE, TimeLeft, WholeProgress

PLAN = {"train": 100.0, "measure": 50.0, "fine-tune": 200.0}


class Work:
    """Stages that take as long as they are told to."""

    def __init__(self, plan: dict[str, float]) -> None:
        self.now = 0.0
        self.left = TimeLeft(plan, lambda: self.now)

    def run(self, stage: str, steps: int, seconds: float, total: int = 10) -> None:
        for done in range(1, steps + 1):
            self.now += seconds
            self.left.told(stage, done, total)


def test_nothing_is_known_before_something_has_taken_time() -> None:
    work = Work(PLAN)
    assert work.left.left() is None
    work.run("train", 1, 1.0)
    assert work.left.left() is None


def test_later_stages_take_as_long_as_their_work_says() -> None:
    work = Work(PLAN)
    work.run("train", 5, 1.0)  # a unit takes 0.1 s
    assert work.left.left() == pytest.approx(5 + 5 + 20)
    work.run("measure", 10, 0.5)
    assert work.left.left() == pytest.approx(20)


def test_a_stage_that_is_slower_than_planned_corrects_what_is_left_of_it_and_behind_it() -> None:
    work = Work(PLAN)
    work.run("train", 10, 1.0)
    work.run("measure", 6, 5.0)  # ten times as slow
    left = work.left.left()
    assert left is not None
    assert 20 + 20 < left < 20 + 200
    work.run("fine-tune", 6, 2.0)  # as planned
    assert work.left.left() == pytest.approx(8)


def test_stages_that_a_journal_or_a_cache_had_are_over() -> None:
    work = Work(PLAN)
    work.left.told("fine-tune", 7, 10)
    work.run("fine-tune", 0, 0)
    for done in (8, 9):
        work.now += 3
        work.left.told("fine-tune", done, 10)
    assert work.left.left() == pytest.approx(3)


def test_what_is_not_planned_tells_nothing() -> None:
    work = Work(PLAN)
    work.run("train", 5, 1.0)
    work.run("find the alignment", 10, 100.0)
    assert work.left.left() == pytest.approx(30)


def test_the_whole_is_told_once_a_second_in_seconds() -> None:
    now, told = 0.0, []
    whole = WholeProgress(lambda *what: told.append(what), lambda: now)
    whole("load", 0, 1)
    whole.expect(PLAN)
    for done in range(1, 41):
        now += 0.25
        whole("train", done, 40)
    of_whole = [what[1:] for what in told if what[0] == WHOLE]
    assert len(of_whole) == 10
    assert of_whole[-1] == (10, 35)
    assert [what for what in told if what[0] == "train"] == [("train", done, 40) for done in range(1, 41)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"recover": {"method": "finetune", "steps": 8, "batch": 8, "private_blocks": 0.1, "private_steps": 2}},
        {"recover": {"method": "finetune", "steps": 8, "batch": 8, "start": "closed-form"}, "compare": True},
        {"recover": "closed-form", "alignment": 0.5},
        {"alignment": float("inf")},
    ],
)
def test_the_plan_names_the_stages_that_come_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    content, seen, plans = tiny.assistant(tmp_path) | change, {}, []
    monkeypatch.setattr(WholeProgress, "expect", lambda _, plan: plans.append(plan))
    wp.compile(content, out=tmp_path / "a.bundle", progress=lambda stage, _done, _total: seen.setdefault(stage))
    unplanned = {WHOLE, "reorder", "choose floors", "align", "find the alignment", "pack"}
    (plan,) = plans
    assert list(plan) == [stage for stage in seen if stage not in unplanned]
    assert all(work > 0 for work in plan.values())


@pytest.mark.slow
def test_the_plan_names_what_chooses_a_dense_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training is taken to gain, so that the dense model is measured on held-out data as well."""
    content = tiny.assistant(tmp_path, recover={"method": "finetune", "steps": 2, "batch": 8}, compare=True)
    for task in content["tasks"].values():
        task["validation"] = task["eval"]
    seen: dict[str, None] = {}
    plans: list[dict[str, float]] = []
    monkeypatch.setattr(controls, "gain", lambda _now, _before: 1.0)
    monkeypatch.setattr(WholeProgress, "expect", lambda _, plan: plans.append(plan))
    wp.compile(content, out=tmp_path / "a.bundle", progress=lambda stage, _done, _total: seen.setdefault(stage))
    (plan,) = plans
    of_dense = [stage for stage in seen if stage.startswith("control dense")]
    assert [stage for stage in plan if stage.startswith("control dense")] == of_dense
    assert sum("validation data" in stage for stage in of_dense) == 2 * len(content["tasks"])
