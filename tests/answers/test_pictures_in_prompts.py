"""Pictures of prompts are seen one at a time before the first piece is read, and others have turns between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from weightpager.answers.batches import Bounds, batches
from weightpager.answers.generation import GenerationRun, completions
from weightpager.answers.kept import Kept
from weightpager.answers.model import (
    Activations,
    CacheSize,
    Floats,
    Inputs,
    Integers,
    ModelLimits,
    PlacedFeatures,
    TaskModel,
)
from weightpager.answers.query import BlockingQuery
from weightpager.answers.work import Generate, Generated
from weightpager.bundle.format.manifest import Pictures
from weightpager.readers.picture import Picture

TOKENS, WIDTH, PLACE, END = 2, 3, 9, 0
PICTURES = Pictures(blocks="shared", layers=1, token="<image>", token_id=PLACE, tokens=TOKENS, width=WIDTH)


class Adding:
    """Its next token is the sum of all that it has read: ids of words, and the first numbers of features."""

    stoppable, exact = True, False

    def __init__(self, model: AddingModel, placed: PlacedFeatures | None) -> None:
        self._model, self._placed = model, placed
        self.done = 0

    def hidden(self, ids: Integers, mask: Integers) -> Floats:
        self.done = ids.shape[1]
        return np.zeros((*ids.shape, WIDTH), np.float32)

    def next(self, ids: Integers, mask: Integers, draw: object) -> Integers:
        self.done = ids.shape[1]
        words = ids * mask
        if self._placed is not None:
            index = np.full(ids.shape, -1)
            index[:, : self._placed.index.shape[1]] = self._placed.index
            rows = np.append(self._placed.rows[:, 0], 0)
            words = np.where(index >= 0, rows[index].astype(int), words)
        return np.asarray(words.sum(1) % 200 + 10)

    def keep(self, texts: Sequence[int]) -> None:
        if self._placed is not None:
            self._placed = PlacedFeatures(self._placed.rows, self._placed.index[list(texts)])


class AddingModel(TaskModel):
    limits = ModelLimits(256, 100, None, True, Activations(1, 0), PICTURES)
    cache = CacheSize(1, 1)
    eos_token_ids = frozenset({END})

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def logits(self, inputs: Inputs) -> Floats:
        raise NotImplementedError

    def hidden(self, inputs: Inputs) -> Floats:
        raise NotImplementedError

    def features(self, pixels: Floats, grids: object = None) -> Floats:
        self.seen.append(pixels.shape)
        return np.broadcast_to(pixels.mean((1, 2, 3))[:, None, None], (len(pixels), TOKENS, WIDTH))

    def reading(self, texts: int, most: int | None, placed: PlacedFeatures | None = None) -> Any:
        return Adding(self, placed)


class Numbers:
    """A tokenizer whose tokens are numbers."""

    pad_id, end_id, longest = 1, None, math.inf
    pictures = SimpleNamespace(pictures=PICTURES)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(f"{number}," for number in ids)


NUMBERS: Any = Numbers()


def picture(value: int) -> Picture:
    return Picture(bytes([value]), lambda: np.full((3, 4, 5), value, np.float32), TOKENS)


def asked(*pictures: int, words: tuple[int, ...] = (2,), most: int = 1) -> BlockingQuery:
    ids = (PLACE,) * TOKENS * len(pictures) + words
    return BlockingQuery(Generate(ids, most, pictures=tuple(map(picture, pictures))))


def text(query: BlockingQuery) -> str:
    assert isinstance(query.outcome, Generated)
    return query.outcome.text


def run_of(model: AddingModel, *queries: BlockingQuery, **more: Any) -> GenerationRun:
    return GenerationRun(model, NUMBERS, queries, **more)


def test_pictures_stand_in_the_places_of_their_texts() -> None:
    model, queries = AddingModel(), [asked(20, 30), asked(words=(2, 3, 4)), asked(50)]
    run_of(model, *queries).step(math.inf)
    assert [text(query) for query in queries] == ["112,", "19,", "112,"]  # 2·20 + 2·30 + 2 + 10, and so on
    assert model.seen == [(1, 3, 4, 5)] * 3  # one at a time


def test_a_step_ends_after_a_picture_when_its_time_is_over() -> None:
    model, queries = AddingModel(), [asked(20, 30), asked(50)]
    run, counts = run_of(model, *queries), list[int]()
    while not all(query.over for query in queries):
        assert run.step(0.0) == (2 if len(counts) == 3 else 0)
        counts.append(len(model.seen))
    assert counts == [1, 2, 3, 3]


def test_pictures_of_a_text_that_nobody_waits_for_are_not_computed() -> None:
    model, gone, left = AddingModel(), asked(20, 30), asked(50)
    run = run_of(model, gone, left)
    run.step(0.0)
    gone.outcome = Generated("", 0, "stop")
    while not left.over:
        run.step(0.0)
    assert len(model.seen) == 2
    assert text(left) == "112,"


def test_features_come_from_whoever_keeps_them() -> None:
    model, kept = AddingModel(), list[bytes]()

    def find(of: TaskModel, found: Picture) -> Floats:
        assert of is model
        kept.append(found.key)
        return np.full((TOKENS, WIDTH), found.key[0], np.float32)

    query = asked(20, 30)
    run_of(model, query, kept=Kept(find)).step(math.inf)
    assert text(query) == "112,"
    assert kept == [b"\x14", b"\x1e"]
    assert not model.seen


def test_texts_without_pictures_are_read_as_before() -> None:
    model, query = AddingModel(), asked(words=(2, 3), most=2)
    run_of(model, query).step(math.inf)
    assert text(query) == "15,30,"
    assert not model.seen


def test_more_or_fewer_placeholders_than_pictures_are_an_error() -> None:
    query = BlockingQuery(Generate((PLACE, 2), 1, pictures=(picture(1),)))
    with pytest.raises(ValueError, match="expected 2 placeholders for the features of pictures, found 1"):
        run_of(AddingModel(), query).step(math.inf)


def test_a_measured_batch_has_its_pictures_in_the_order_of_their_places() -> None:
    ids = [(PLACE,) * 4 + (2,), (1,) * 2 + (2, 3, 4), (1,) * 2 + (PLACE,) * 2 + (2,)]
    mask = [(1,) * 5, (0,) * 2 + (1,) * 3, (0,) * 2 + (1,) * 3]
    pixels = np.stack([np.full((3, 4, 5), value, np.float32) for value in (20, 30, 50)])
    inputs = {"input_ids": np.array(ids), "attention_mask": np.array(mask), "pixel_values": pixels}
    assert completions(AddingModel(), NUMBERS, inputs, 1) == ["112,", "19,", "112,"]


def test_few_pictures_are_read_together() -> None:
    queries = [asked(*range(1, 7)) for _ in range(4)] + [asked(*range(1, 41))]
    found = [len(batch) for batch in batches(queries, Bounds())]
    assert found == [2, 2, 1]
    assert [len(batch) for batch in batches([asked() for _ in range(30)], Bounds())] == [30]
