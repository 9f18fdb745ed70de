"""What is done for each task may be done anywhere, and in any order."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
import weightpager as wp
from same_bundle import assert_same
from weightpager.compiler.recovery import private_blocks
from weightpager.compiler.resume.cache import Cache
from weightpager.compiler.resume.journal import LOCAL, Done, Job, Journal, Key, Value
from weightpager.compiler.training import device
from weightpager.compiler.training.device import Arithmetic
from weightpager.errors import CompileError
from weightpager.progress import StepProgress, silent

TRAINED = {
    "method": "finetune", "steps": 4, "batch": 8, "learning_rate": 3e-3,
    "private_blocks": 0.2, "private_steps": 3, "low_rank": 2,
}  # fmt: skip


class Elsewhere:
    """Does copies of jobs, as another process would, the last one first.

    Attributes:
        done: keys of all jobs, in the order in which they were done.
    """

    here = False

    def __init__(self) -> None:
        self.done: list[object] = []

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        assert copies >= 1
        sent = {key: pickle.dumps(job) for key, job in jobs.items()}
        for key in reversed(sent):
            self.done.append(key)
            found = pickle.loads(sent[key])(told(key))
            yield Done(key, pickle.loads(pickle.dumps(found)), 1.0)


def doubled(number: int, progress: StepProgress) -> int:
    progress(1, 1)
    return 2 * number


def refused(_progress: StepProgress) -> int:
    raise CompileError("tasks.b: no")


def test_jobs_are_done_in_turn_each_when_it_is_asked_for() -> None:
    told: list[tuple[str, int]] = []
    jobs = {"a": partial(doubled, 1), "b": refused, "c": partial(doubled, 3)}
    found = LOCAL.each(jobs, lambda key: lambda done, _total: told.append((key, done)), 1)
    assert told == []
    first = next(found)
    assert (first.key, first.value, told) == ("a", 2, [("a", 1)])
    assert 0 <= first.seconds < 60
    with pytest.raises(CompileError, match=r"tasks\.b: no"):
        next(found)
    assert told == [("a", 1)]
    assert list(LOCAL.each({}, lambda _key: silent, 1)) == []


def test_nothing_is_held_of_a_job_that_has_ended() -> None:
    deleted: list[int] = []

    class Large:
        def __init__(self, number: int) -> None:
            self.number = number

        def __del__(self) -> None:
            deleted.append(self.number)

    def made(number: int, _progress: StepProgress) -> Large:
        assert deleted == list(range(number))
        return Large(number)

    for done in LOCAL.each({number: partial(made, number) for number in range(3)}, lambda _key: silent, 1):
        assert done.value.number == done.key
        del done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "changes"),
    [
        (tiny.assistant, {"recover": TRAINED, "compare": True, "alignment": 0.5}),
        (tiny.assistant, {"recover": TRAINED, "dtype": "int4", "reorder": False}),
        (tiny.camera, {}),
        (tiny.clerk, {}),
    ],
    ids=["encoder", "int4", "images", "prompts"],
)
def test_what_is_done_elsewhere_makes_the_same_bundle(
    tmp_path: Path, made: Callable[..., dict[str, Any]], changes: dict[str, Any]
) -> None:
    content, elsewhere = made(tmp_path, **changes), Elsewhere()
    here = wp.compile(content, out=tmp_path / "here.bundle")
    there = wp.compile(content, out=tmp_path / "there.bundle", workers=elsewhere)
    assert_same(here.path, there.path)
    stages = 3 + bool(content.get("recover"))  # measured dense, calibrated, trained, measured sparse
    tasks = [key for key in elsewhere.done if not isinstance(key, tuple)]
    assert len(tasks) >= stages * len(content["tasks"])


@pytest.mark.slow
def test_tasks_that_are_added_are_trained_elsewhere(tmp_path: Path, assistant_bundle: Path) -> None:
    content = tiny.assistant(tmp_path)
    pets = {"pet": tiny.classification(tmp_path, "pet", {"cat": ["cat"], "dog": ["dog"]})}
    sky = {"sky": tiny.classification(tmp_path, "sky", {"sun": ["sun"], "rain": ["rain"]})}
    recover = {key: value for key, value in TRAINED.items() if not key.startswith("private")}
    new = {"model": content["model"], "training": {"steps": 4}, "recover": recover, "tasks": pets | sky}
    here = wp.compile(new, out=tmp_path / "here.bundle", base=assistant_bundle)
    there = wp.compile(new, out=tmp_path / "there.bundle", base=assistant_bundle, workers=Elsewhere())
    assert_same(here.path, there.path)


class Killed(Elsewhere):
    """Ends with Ctrl-C after two trainings."""

    def each(
        self, jobs: Mapping[Key, Job[Value]], told: Callable[[Key], StepProgress], copies: int
    ) -> Iterator[Done[Key, Value]]:
        trains = any(getattr(job, "func", None) is private_blocks._train for job in jobs.values())
        for number, done in enumerate(super().each(jobs, told, copies)):
            if trains and number == 2:
                raise KeyboardInterrupt
            yield done


@pytest.mark.slow
def test_what_was_trained_elsewhere_is_in_the_journal_as_soon_as_it_is_there(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, recover=TRAINED)
    with pytest.raises(KeyboardInterrupt, match=r"colour's own values up to step 3, number's own values up to step 3"):
        wp.compile(content, out=tmp_path / "a.bundle", workers=Killed())
    told: list[tuple[str, int]] = []
    wp.compile(content, out=tmp_path / "a.bundle", progress=lambda stage, done, _total: told.append((stage, done)))
    assert [done for stage, done in told if stage == "private blocks"] == [1, 2, 3, 4, 5, 6]
    assert_same(wp.compile(content, out=tmp_path / "whole.bundle").path, tmp_path / "a.bundle")


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "kept"), [("measure dense animal", "scores"), ("calibrate", "sums")])
def test_what_is_found_elsewhere_is_in_the_cache_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, kept: str
) -> None:
    monkeypatch.setenv("WEIGHTPAGER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTPAGER_CACHE_LIMIT", "100MB")

    def interrupted(told: str, done: int, _total: int) -> None:
        if (told, done) == (stage, 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        wp.compile(tiny.assistant(tmp_path), out=tmp_path / "a.bundle", workers=Elsewhere(), progress=interrupted)
    found = {path.path.name.rpartition("-")[0] for path in Cache.of_user().entries()}
    assert {f"{kept}-colour", f"{kept}-number"} <= found  # the last ones first
    assert f"{kept}-animal" not in found


def test_an_entry_of_a_journal_may_say_what_it_took(tmp_path: Path) -> None:
    Journal(tmp_path / "j", "one").write("private-a", 3, {"a": torch.ones(1)}, seconds=12.5)
    again = Journal(tmp_path / "j", "one")
    assert again.read("private-a") is not None
    assert again.earlier == 12.5


def test_a_process_computes_as_the_one_that_it_works_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_bfloat16_pays", lambda: True)
    monkeypatch.setattr(device, "_stated", device._StatedTrial())
    theirs = Arithmetic.here()
    assert theirs == Arithmetic(torch.get_num_threads(), True, False, "highest")
    monkeypatch.setattr(device, "_bfloat16_pays", time.sleep)  # a trial, which isn't made
    theirs.take()
    assert Arithmetic.here() == theirs
