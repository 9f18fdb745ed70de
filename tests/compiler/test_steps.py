"""Steps follow the amount of data, unless they are stated."""

from __future__ import annotations

import logging
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from tiny_models import jsonl

import tiny
from weightpager.compiler.journal import Journal
from weightpager.compiler.prepare import trained
from weightpager.compiler.prepared import Trained
from weightpager.compiler.steps import TIMES, enough
from weightpager.compiler.task_file import from_dict


def two_tasks(folder: Path, rows: dict[str, int], **changes: object) -> Trained:
    """A trained model of two tasks with so many training rows."""
    content = tiny.assistant(folder, **changes)
    content["tasks"] = {name: content["tasks"][name] for name in rows}
    for name, count in rows.items():
        lines = Path(content["tasks"][name]["train"]).read_text().splitlines()
        Path(content["tasks"][name]["train"]).write_text("\n".join((lines * count)[:count]))
    return trained(from_dict(content), lambda *_: None, Journal.none())


def test_the_largest_task_sees_its_examples_so_often() -> None:
    assert enough([12, 10], 32) == 2 * TIMES
    assert enough([32], 32) == TIMES
    assert enough([33, 5], 32) == 2 * -(-TIMES * 33 // 32)
    assert enough([1000, 1000], 32) > 360


def test_steps_follow_the_data_where_none_are_stated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = {"animal": 6, "weather": 4}
    with caplog.at_level(logging.INFO):
        found = two_tasks(tmp_path, rows, training={}, recover={"method": "finetune", "start": "closed-form"})
    file = found.source.task_file
    assert file.training.steps == file.recover.steps == 2 * TIMES
    assert file.recover.private_steps == min(60, TIMES)
    assert f"training.steps: {2 * TIMES} instead of 360, which shows the 6 examples of the largest task" in caplog.text
    assert f"recover.steps: {2 * TIMES} instead of 360" in caplog.text


def test_stated_steps_are_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stated = {"training": {"steps": 50}, "recover": {"method": "finetune", "steps": 360, "private_steps": 61}}
    with caplog.at_level(logging.INFO):
        file = two_tasks(tmp_path, {"animal": 6, "weather": 4}, **stated).source.task_file
    assert (file.training.steps, file.recover.steps, file.recover.private_steps) == (50, 360, 61)
    assert "instead of" not in caplog.text


def test_stating_the_default_is_another_compile(tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path, training={})
    ours, theirs = (from_dict(content | {"training": training}) for training in ({}, {"steps": 360}))
    assert ours.identity() != theirs.identity()


@pytest.mark.parametrize("rows", [3, 8, 20, 40])
def test_a_batch_never_has_an_example_twice(tmp_path: Path, rows: int) -> None:
    content = tiny.assistant(tmp_path)
    words = [" ".join(["cat"] * (1 + number % 5)) + f" {number}" for number in range(rows)]
    jsonl(tmp_path / "rows.jsonl", [{"text": text, "label": ("cat", "dog")[n % 2]} for n, text in enumerate(words)])
    content["tasks"]["animal"]["train"] = str(tmp_path / "rows.jsonl")
    data = trained(from_dict(content), lambda *_: None, Journal.none()).data["animal"]
    size = min(8, rows)
    round_of_data = list(islice(data.shuffled(8), -(-rows // size)))
    assert sum(batch.items for batch in round_of_data) == rows
    lengths = Counter(int(length) for batch in round_of_data for length in batch.inputs["attention_mask"].sum(1))
    assert lengths == Counter(example.length for example in data.train)
