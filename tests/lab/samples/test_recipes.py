from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from json_lines import rows
from weightpager.errors import ConfigError
from weightpager_lab.samples import Missing, SampleUnavailable, tasks
from weightpager_lab.samples.download import Fetcher
from weightpager_lab.samples.recipes import Item, Recipe, document, follow, labelled

LIMITS = {"train": 20, "validation": 5, "eval": 5}


def colours(_: Fetcher) -> Iterable[Item]:
    for number in range(300):
        yield labelled(f"colour {number}", "red" if number % 3 else "blue", f"shelf {number // 4}")


def nothing(_: Fetcher) -> Iterable[Item]:
    raise SampleUnavailable("the shop is closed")


def recipe(name: str, read=colours, source: str = "shop 1.0") -> Recipe:  # type: ignore[no-untyped-def]
    return Recipe(name, "text-classification", ("blue", "red"), source, read, tasks.write_rows, ".jsonl")


def test_files_of_a_sample(tmp_path: Path) -> None:
    said: list[str] = []
    (sample,), missing = follow([recipe("colour")], tmp_path, LIMITS, said.append)
    assert missing == []
    assert said == ["colour: train 20 items, validation 5 items, eval 5 items"]
    splits = [rows(path) for path in (sample.train, sample.validation, sample.eval)]
    shelves = [{int(row["text"].split()[1]) // 4 for row in split} for split in splits]
    assert shelves[0].isdisjoint(shelves[1] | shelves[2])
    assert shelves[1].isdisjoint(shelves[2])
    assert all({row["label"] for row in split} == {"blue", "red"} for split in splits)
    assert json.loads((sample.train.parent / "about.json").read_text())["source"] == "shop 1.0"


def test_a_second_call_reads_nothing(tmp_path: Path) -> None:
    first = follow([recipe("colour")], tmp_path, LIMITS, lambda _: None)
    assert follow([recipe("colour", nothing)], tmp_path, LIMITS, lambda _: None) == first


def test_another_source_or_size_is_another_sample(tmp_path: Path) -> None:
    places = {
        follow([recipe("colour", source=source)], tmp_path, {**LIMITS, "train": size}, lambda _: None)[0][0].train
        for source, size in (("shop 1.0", 20), ("shop 2.0", 20), ("shop 1.0", 30))
    }
    assert len(places) == 3


def test_a_larger_sample_contains_the_smaller_one(tmp_path: Path) -> None:
    small, large = (
        rows(follow([recipe("colour")], tmp_path, {**LIMITS, "train": size}, lambda _: None)[0][0].train)
        for size in (20, 40)
    )
    assert large[:20] == small


def test_one_missing_sample_does_not_stop_the_others(tmp_path: Path) -> None:
    samples, missing = follow([recipe("a", nothing), recipe("b")], tmp_path, LIMITS, lambda _: None)
    assert [sample.name for sample in samples] == ["b"]
    assert missing == [Missing("a", "the shop is closed")]


def test_no_sample_at_all(tmp_path: Path) -> None:
    with pytest.raises(SampleUnavailable, match=r"a: the shop is closed\n.*b: the shop is closed"):
        follow([recipe("a", nothing), recipe("b", nothing)], tmp_path, LIMITS, lambda _: None)


def test_sizes_are_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="size of validation: expected at least 1, got 0"):
        tasks.prepare(tmp_path, eval_items=0, report=lambda _: None)
    with pytest.raises(ConfigError, match="size of train"):
        tasks.language_modeling(tmp_path, train_chars=0, report=lambda _: None)


def test_plain_text_is_cut_at_the_limit(tmp_path: Path) -> None:
    items = [document(text * 10, text) for text in "abc"]
    assert tasks.write_text(items, 25, tmp_path / "text") == "25 characters"
    text = (tmp_path / "text").read_text()
    assert len(text) == 25
    assert set(text.split("\n\n")[0]) <= set("abc")
    assert len(set(text.split("\n\n")[0])) == 1
