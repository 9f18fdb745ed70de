"""Steps follow the amount of data, unless they are stated."""

from __future__ import annotations

import logging
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

import tiny
from weightpager.compiler.data import TaskData, collate_texts
from weightpager.compiler.prepare import train_and_measure_dense
from weightpager.compiler.resume.identities import compile_identity
from weightpager.compiler.resume.journal import CompileRun
from weightpager.compiler.selection.prepared import Trained
from weightpager.compiler.task_file.file import from_dict
from weightpager.compiler.training.early_stopping import TIMES, enough
from weightpager.task_data.texts import Example


def two_tasks(folder: Path, rows: dict[str, int], **changes: object) -> Trained:
    """A trained model of two tasks with so many training rows."""
    content = tiny.assistant(folder, **changes)
    content["tasks"] = {name: content["tasks"][name] for name in rows}
    for name, count in rows.items():
        lines = Path(content["tasks"][name]["train"]).read_text().splitlines()
        Path(content["tasks"][name]["train"]).write_text("\n".join((lines * count)[:count]))
    return train_and_measure_dense(from_dict(content), CompileRun())


def test_the_largest_task_sees_its_examples_so_often() -> None:
    assert enough([12, 10], 32) == 2 * TIMES
    assert enough([32], 32) == TIMES
    assert enough([33, 5], 32) == 2 * -(-TIMES * 33 // 32)
    assert enough([1000, 1000], 32) > 360


@pytest.mark.slow
def test_steps_follow_the_data_where_none_are_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"animal": 6, "weather": 4}
    with caplog.at_level(logging.INFO):
        found = two_tasks(tmp_path, rows, training={}, recover={"method": "finetune", "start": "closed-form"})
    file = found.source.task_file
    assert file.training.steps == file.recover.steps == 2 * TIMES
    assert file.recover.private_steps == min(60, TIMES)
    assert f"training.steps: {2 * TIMES} instead of 360, which shows the 6 examples of the largest task" in caplog.text
    assert f"recover.steps: {2 * TIMES} instead of 360" in caplog.text


@pytest.mark.slow
def test_stated_steps_are_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stated = {"training": {"steps": 50}, "recover": {"method": "finetune", "steps": 360, "private_steps": 61}}
    with caplog.at_level(logging.INFO):
        file = two_tasks(tmp_path, {"animal": 6, "weather": 4}, **stated).source.task_file
    assert (file.training.steps, file.recover.steps, file.recover.private_steps) == (50, 360, 61)
    assert "instead of" not in caplog.text


def test_stating_the_default_is_another_compile(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, training={})
    ours, theirs = (from_dict(content | {"training": training}) for training in ({}, {"steps": 360}))
    assert compile_identity(ours) != compile_identity(theirs)


@pytest.mark.parametrize("rows", [3, 8, 20, 40])
def test_a_batch_is_not_copies_of_one_example(rows: int) -> None:
    lengths = [1 + number % 5 for number in range(rows)]
    train = tuple(Example([1] * length, number) for number, length in enumerate(lengths))
    data = TaskData("text-classification", ("a",), train, (), None, partial(collate_texts, pad=0))
    for batch in islice(data.shuffled(8), 100):
        seen = Counter(batch.labels.tolist())
        assert sum(seen.values()) == min(8, rows)
        assert max(seen.values()) <= 2  # where one round ends and the next begins
        assert len(seen) > min(8, rows) // 2
