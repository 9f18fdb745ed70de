"""What methods are asked: something else at each switch, and the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from weightpager.answers.model import Inputs
from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.errors import BundleFormatError
from weightpager.readers.tokenizer import open_tokenizer
from weightpager.task_data.held_out import read_held_out
from weightpager_lab.contest import prompt
from weightpager_lab.contest.measuring import FORWARD, SWITCH, VISIT, measure
from weightpager_lab.contest.prompt import TEXTS, TOKENS, Prompts, write_texts
from weightpager_lab.contest.result import Job
from weightpager_lab.contest.rivals.methods import method
from weightpager_lab.contest.rivals.rival import Rival

JOB = Job(
    method="ours",
    bundle="",
    folder="",
    budget=0,
    threads=1,
    pace=None,
    seconds=9.0,
    repeats=1,
    visits=3,
    tasks=2,
    seed=0,
)


class Listening(Rival):
    """Notes all that it is asked, by task."""

    backend = "none"

    def __init__(self) -> None:
        self.asked: list[tuple[str, bytes]] = []

    def switch(self, task: str) -> Callable[..., Any]:
        return lambda ids: self.asked.append((task, ids.tobytes()))

    def use_threads(self, count: int) -> None:
        """It computes nothing."""

    def threads(self) -> int:
        return 1

    def prepared(self, _task: object, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return inputs

    def run(self, module: Any, inputs: Mapping[str, Any]) -> None:
        module(inputs["input_ids"])

    def write(self, task: str, inputs: Inputs) -> Iterator[int]:
        self.asked.append((task, inputs["input_ids"].tobytes()))
        return iter(range(9))

    def weight_bytes(self) -> int:
        return 0

    paged_bytes = weight_bytes


def asked_of(bundle: Bundle, folder: Path) -> list[tuple[str, bytes]]:
    rival = Listening()
    measure(rival, method("ours"), bundle, list(bundle.tasks)[:2], JOB.model_copy(update={"folder": str(folder)}))
    return rival.asked


@pytest.fixture
def bundle(assistant_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.setattr("weightpager_lab.contest.measuring.FORWARD_SECONDS", 0.0)
    return Bundle.open(assistant_bundle)


def test_no_switch_and_no_forward_is_asked_what_one_before_was(bundle: Bundle, tmp_path: Path) -> None:
    asked = [words for _, words in asked_of(bundle, tmp_path)]
    timed = 2 + 3 + 3 * 3  # switches, visits, forwards in three turns
    assert len(set(asked)) == timed + 1  # and what warms up


def test_methods_are_asked_the_same(bundle: Bundle, tmp_path: Path) -> None:
    assert asked_of(bundle, tmp_path) == asked_of(bundle, tmp_path)


def test_prompts_are_pieces_of_held_out_texts(bundle: Bundle, tmp_path: Path) -> None:
    write_texts(bundle, list(bundle.tasks), tmp_path)
    prompts = Prompts(bundle, 0, tmp_path / TEXTS)
    assert prompts.source == "held-out"
    stated, reader = bundle.task(next(iter(bundle.tasks))).eval, open_tokenizer(bundle)
    assert stated is not None
    file = held_out_file(bundle, stated)
    assert file is not None
    known = set(reader.encode(file.read_text(encoding="utf-8")).ids)
    found = {prompts.of(next(iter(bundle.tasks)), number)["input_ids"].tobytes() for number in range(9)}
    assert len(found) > 1
    for words in found:
        ids = np.frombuffer(words, np.int64)
        assert ids.shape == (TOKENS,)
        assert known.issuperset(ids.tolist())


def test_prompts_with_pictures_are_held_out_ones_and_the_same_for_all(driver_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(driver_bundle)
    write_texts(bundle, list(bundle.tasks), tmp_path)
    prompts, again = (Prompts(bundle, 0, tmp_path / TEXTS) for _ in range(2))
    assert prompts.source == "held-out"
    pictures = bundle.pictures
    assert pictures is not None
    reader = open_tokenizer(bundle)
    for task, entry in bundle.tasks.items():
        assert entry.eval is not None
        file = held_out_file(bundle, entry.eval)
        assert file is not None
        asked = [inputs for inputs, _ in read_held_out(entry, file, reader, 18, 1) if "pixel_values" in inputs]
        known = {(each["input_ids"].tobytes(), each["pixel_values"].tobytes()) for each in asked}
        found = [prompts.of(task, SWITCH, number) for number in range(len(asked))]
        assert {(each["input_ids"].tobytes(), each["pixel_values"].tobytes()) for each in found} == known
        for number, each in enumerate(found):
            assert (each["input_ids"] == pictures.token_id).sum() == pictures.tokens * len(each["pixel_values"])
            same = again.of(task, SWITCH, number)
            assert all(np.array_equal(same[name], each[name]) for name in each)
        mean = sum(each["input_ids"].size for each in asked) / len(asked)
        assert prompts.items(task) == round(mean)


def test_a_picture_is_kept_once_and_shown_as_often_as_a_prompt_has_it() -> None:
    pictures = np.zeros((3, 3, 2, 2), np.float32)
    pictures[1] += 1
    pixels: dict[bytes, Any] = {}
    ids = np.arange(5)[None]
    found = prompt._with_pictures("a", [({"input_ids": ids, "pixel_values": pictures}, ("yes",))], pixels)
    assert found["a/pictures"].tolist() == [[0, 1, 0]]
    assert [pixel.mean() for pixel in pixels.values()] == [0, 1]


def test_without_held_out_pictures_they_and_words_are_random(driver_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(driver_bundle)
    prompts, pictures = Prompts(bundle, 0, tmp_path / TEXTS), bundle.pictures
    assert pictures is not None
    assert prompts.source == "random"
    one, other = (prompts.of("animal", number) for number in (1, 2))
    assert not np.array_equal(one["pixel_values"], other["pixel_values"])
    assert one["pixel_values"].shape == (1, 3, 28, 28)
    assert (one["input_ids"] == pictures.token_id).sum() == pictures.tokens
    assert prompts.items("animal") == one["input_ids"].size == pictures.tokens + TOKENS


def test_no_piece_comes_twice_before_all_have_come(bundle: Bundle, tmp_path: Path) -> None:
    task, count = next(iter(bundle.tasks)), 20
    save_file({task: np.arange(count * TOKENS).reshape(count, TOKENS)}, tmp_path / TEXTS)
    prompts = Prompts(bundle, 0, tmp_path / TEXTS)

    def rounds(*purpose: int) -> list[list[int]]:
        firsts = [int(prompts.of(task, *purpose, number)["input_ids"][0, 0]) for number in range(2 * count)]
        return [firsts[:count], firsts[count:]]

    orders = [order for purpose in ((), (SWITCH,), (VISIT,), (FORWARD, 0)) for order in rounds(*purpose)]
    assert all(sorted(order) == list(range(0, count * TOKENS, TOKENS)) for order in orders)
    assert len(set(map(tuple, orders))) == len(orders)


def test_texts_that_no_tokenizer_can_read_leave_prompts_random(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Bundle) -> None:
        raise BundleFormatError("model/tokenizer.json", "file", "a tokenizer", "none")

    monkeypatch.setattr("weightpager_lab.contest.prompt.open_tokenizer", refuse)
    write_texts(bundle, list(bundle.tasks), tmp_path)
    assert Prompts(bundle, 0, tmp_path / TEXTS).source == "random"


def test_without_held_out_texts_prompts_are_random(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "weightpager_lab.contest.prompt.open_tokenizer", lambda _: pytest.fail("it opened the tokenizer")
    )
    entries = [replace(entry, eval=None) for entry in bundle.tasks.values()]
    plain = Bundle(bundle.path, replace(bundle.manifest, tasks=entries), bundle.index, bundle.placement)
    write_texts(plain, list(plain.tasks), tmp_path)
    prompts = Prompts(plain, 0, tmp_path / TEXTS)
    assert prompts.source == "random"
    assert prompts.of(next(iter(plain.tasks)), 1)["input_ids"].shape == (1, TOKENS)
