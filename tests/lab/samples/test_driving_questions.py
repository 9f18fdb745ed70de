"""Seven questions about rendered roads: well-formed rows, and answers that can be seen."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from json_lines import rows
from weightpager.errors import ConfigError
from weightpager_lab.samples import driving_questions as questions
from weightpager_lab.samples.driving_questions import ANSWERS, CELL, FRAME, QUESTIONS, SEEN, answers_of, frame
from weightpager_lab.samples.road_scene import CLASSES, draw
from weightpager_lab.samples.sample import Sample, SampleUnavailable


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    return questions.driving_questions(
        tmp_path_factory.mktemp("cache"), train_scenes=5, eval_scenes=2, report=lambda _: None
    )


def test_rows_of_every_task(samples: list[Sample]) -> None:
    assert [sample.name for sample in samples] == list(QUESTIONS) == list(ANSWERS)
    for sample in samples:
        assert sample.kind == "text-generation"
        for path, size in ((sample.train, 5), (sample.validation, 2), (sample.eval, 2)):
            found = rows(path)
            assert len(found) == size
            for row in found:
                assert list(row) == ["image", "prompt", "completion"]
                assert row["prompt"] == QUESTIONS[sample.name]
                assert row["completion"][0] == " "
                assert row["completion"][1:] in ANSWERS[sample.name]
                with Image.open(path.parent / row["image"]) as picture:
                    assert (picture.size, picture.mode) == ((FRAME, FRAME), "RGB")


def test_splits_share_no_picture(samples: list[Sample]) -> None:
    names = [
        {row["image"] for row in rows(path)} for path in (samples[0].train, samples[0].validation, samples[0].eval)
    ]
    assert len(set.union(*names)) == 9


def test_files_hold_what_the_numbers_give(samples: list[Sample]) -> None:
    answers, pixels, seen = frame(0, 3)
    folder = samples[0].train.parent
    assert [rows(sample.train)[3]["completion"].strip() for sample in samples] == list(answers.values())
    with Image.open(folder / "pictures/train-00003.png") as picture:
        assert np.array_equal(np.asarray(picture), pixels)
    assert np.array_equal(np.load(folder / questions.SEEN_FILE)[3], seen)
    found = answers_of(samples, "train")[3]
    assert [ANSWERS[task][place] for task, place in zip(ANSWERS, found, strict=True)] == list(answers.values())


def test_the_scene_is_that_of_the_five_tasks() -> None:
    answers, pixels, seen = frame(2, 7)
    scene = draw(np.random.default_rng([2, 7]))
    assert {task: answers[task] for task in CLASSES} == scene.labels()
    assert pixels.shape == (FRAME, FRAME, 3)
    assert seen.shape == ((FRAME // CELL) ** 2, len(SEEN))


def test_who_walks_and_rides_is_seen_where_the_answer_says() -> None:
    counts = {task: Counter[str]() for task in ("person", "bicycle")}
    hidden = 0
    for number in range(60):
        answers, _, seen = frame(0, number)
        for task, count in counts.items():
            count[answers[task]] += 1
            columns = np.flatnonzero(seen[:, SEEN.index(task)].reshape(8, 8).any(0))
            if answers[task] == "none":
                assert not len(columns)
            elif not len(columns):
                hidden += 1
            elif answers[task] == "left":
                assert columns.min() <= 4
            elif answers[task] == "right":
                assert columns.max() >= 4
    assert hidden <= 3
    assert {task: set(count) for task, count in counts.items()} == {task: set(ANSWERS[task]) for task in counts}


def test_a_process_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions.sys, "executable", "/bin/false")
    with pytest.raises(SampleUnavailable, match="pictures could not be rendered"):
        questions.driving_questions(tmp_path, train_scenes=1, eval_scenes=1, report=lambda _: None)
    assert not list((tmp_path / "samples").iterdir())


def test_sizes_are_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size of train: expected at least 1, got 0"):
        questions.driving_questions(tmp_path, train_scenes=0, report=lambda _: None)
