"""What methods are asked: something else at each switch, and the same for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import save_file

from weightpager.answers.model import Integers
from weightpager.bundle import Bundle
from weightpager.bundle.held_out_places import held_out_file
from weightpager.errors import BundleFormatError
from weightpager.readers.tokenizer import open_tokenizer
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

    def write(self, task: str, text: Integers) -> Iterator[int]:
        self.asked.append((task, text.tobytes()))
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
