"""Every picture tower before every language model, by native code and by torch, against transformers' own calls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import tiny_llava
from tiny_llava import LANGUAGES, TOWERS, LanguageName, TowerName
from weightpager.answers import model as forward_size
from weightpager.answers.model import Floats, Inputs, Integers, PlacedFeatures, TaskModel
from weightpager.answers.work import Sampling
from weightpager.backends.torch.torch_model import TorchModel

pytest.importorskip("weightpager.kernels._native")

from picture_models import (
    PICTURES,
    PLACEHOLDER,
    config_of,
    features_graph,
    native_model,
    pixels_of,
    prompts,
    words_graph,
)
from weightpager.backends.native.native_model import NativeModel
from weightpager.backends.native.program import KVCache

CLOSE = 1e-5
UNSURE = 1e-3
"""Two logits that differ by less may be rounded to either order."""

COUNTS = [1, 0, 3, 2, 1]
"""Pictures of each text of a batch."""


class Made:
    """A model by transformers, and what answers get of it."""

    def __init__(self, factory: pytest.TempPathFactory, tower: TowerName, language: LanguageName) -> None:
        self.module: Any = tiny_llava.model(config_of(tower, language)).requires_grad_(False)
        native = native_model(features_graph(factory, tower), words_graph(factory, language), self.module)
        self.models: dict[str, TaskModel] = {"native": native, "torch": TorchModel(self.module, PICTURES)}


CASES = [
    pytest.param((tower, language), id=f"{tower}-{language}", marks=() if alike else pytest.mark.slow)
    for at, tower in enumerate(TOWERS)
    for other, language in enumerate(LANGUAGES)
    for alike in [at == other]
]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, TowerName]:
    tower, language = request.param
    return Made(tmp_path_factory, tower, language), tower


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than a picture and its words, so that some borders are inside of pictures."""
    monkeypatch.setattr(forward_size, "PIECE", 6)


def by_transformers(module: Any, ids: Integers, mask: Integers, pixels: Floats) -> Floats:
    """Logits of one plain call; no pixels where there are none."""
    shown = {"pixel_values": torch.from_numpy(pixels)} if len(pixels) else {}
    with torch.inference_mode():
        found = module(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask), **shown)
    return np.asarray(found.logits)


def placed_in(model: TaskModel, ids: Integers, mask: Integers, pixels: Floats) -> PlacedFeatures | None:
    return PlacedFeatures.of(ids, mask, PLACEHOLDER, list(model.features(pixels))) if len(pixels) else None


def grown(model: TaskModel, ids: Integers, mask: Integers, pixels: Floats, tokens: int) -> Integers:
    """Texts that are read in pieces and continued in two steps; between these all but the last one are let go."""
    texts = model.grow(ids, mask, Sampling(), 0, tokens, placed_in(model, ids, mask, pixels))
    while texts.unread:
        texts.read_piece()
    for most, kept in ((2, [len(ids) - 1]), (tokens - 2, [0])):
        texts.grow(most, lambda found: np.zeros(len(found), bool))
        texts.keep(kept)
    return texts.ids


def check_last(made: Made, ids: Integers, mask: Integers, pixels: Floats, whole: Integers) -> None:
    """Each token that the last text was continued by is the likeliest one, or as likely, of the text before it.

    A placeholder that was generated stands for no picture, which transformers' call with pixels would ask for.
    """
    placed = placed_in(made.models["torch"], ids, mask, pixels)
    every = torch.from_numpy(whole)
    embedded = made.module.get_input_embeddings()(every)
    if placed is not None and (here := placed.of_texts([len(ids) - 1]).between(0, whole.shape[1])) is not None:
        embedded[0, here.index[0] >= 0] = torch.from_numpy(here.rows[here.index[0][here.index[0] >= 0]])
    seen = torch.ones_like(every)
    seen[:, : ids.shape[1]] = torch.from_numpy(mask[-1:])
    with torch.inference_mode():
        logits = made.module(inputs_embeds=embedded, attention_mask=seen).logits[0, ids.shape[1] - 1 : -1].numpy()
    chosen = logits[np.arange(len(logits)), whole[0, ids.shape[1] :]]
    assert (chosen >= logits.max(-1) - UNSURE).all()


def batches(pixels: Floats) -> Iterator[tuple[Integers, Integers, Floats]]:
    """All pictures in texts of several numbers of them."""
    first, seed = 0, 0
    while first < len(pixels):
        counts = [int(count) for count in np.random.default_rng(seed).permutation(COUNTS)]
        while sum(counts) > len(pixels) - first:
            counts.pop()
        ids, mask = prompts(counts or [1], seed)
        yield ids, mask, pixels[first : first + sum(counts or [1])]
        first += sum(counts or [1])
        seed += 1


def check(made: Made, pixels: Floats, tokens: int) -> None:
    """Logits, and so many tokens of one text of each batch."""
    for ids, mask, shown in batches(pixels):
        wanted, seen = by_transformers(made.module, ids, mask, shown), mask != 0
        limit = CLOSE * max(1.0, float(np.abs(wanted[seen]).max()))
        for model in made.models.values():
            inputs: Inputs = {"input_ids": ids, "attention_mask": mask, "pixel_values": shown}
            np.testing.assert_allclose(model.logits(inputs)[seen], wanted[seen], rtol=0, atol=limit)
            check_last(made, ids, mask, shown, grown(model, ids, mask, shown, tokens))


def test_features_are_transformers(case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each computed alone, so that no bit depends on the others."""
    made, tower = case
    pixels = pixels_of(tmp_path_factory, tower, 5)
    with torch.inference_mode():
        wanted = torch.stack(list(made.module.get_image_features(torch.from_numpy(pixels)).pooler_output)).numpy()
    assert wanted.shape == (5, PICTURES.tokens, PICTURES.width)
    for model in made.models.values():
        found = model.features(pixels)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=CLOSE * np.abs(wanted).max())
        assert np.array_equal(found[3:4], model.features(pixels[3:4]))


def test_texts_are_read_and_continued_as_transformers_would(
    case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, tower = case
    check(made, pixels_of(tmp_path_factory, tower, 14), 8)


@pytest.mark.slow
@pytest.mark.long
def test_no_picture_of_two_hundred_is_read_otherwise(
    case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, tower = case
    check(made, pixels_of(tmp_path_factory, tower, 200, seed=1), 8)


def test_texts_without_pictures_are_read_as_any(case: tuple[Made, TowerName]) -> None:
    """Their pixels may be left out, or be of no picture."""
    made, _ = case
    ids, mask = prompts([0, 0, 0], seed=4)
    none = np.empty((0, 3, tiny_llava.SIDE, tiny_llava.SIDE), np.float32)
    wanted, seen = by_transformers(made.module, ids, mask, none), mask != 0
    for model in made.models.values():
        given = {"input_ids": ids, "attention_mask": mask}
        found = model.logits(given)
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=CLOSE * np.abs(wanted).max())
        assert np.array_equal(model.logits({**given, "pixel_values": none}), found)
        check_last(made, ids, mask, none, grown(model, ids, mask, none, 6))


def test_features_are_let_go_once_they_have_been_read(
    case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, tower = case
    pixels = pixels_of(tmp_path_factory, tower, 3, seed=5)
    ids, mask = prompts([1, 2], seed=5)
    for model in made.models.values():
        placed = placed_in(model, ids, mask, pixels)
        reading: Any = model.reading(2, ids.shape[1] + 2, placed)
        reading.hidden(ids[:, :-1], mask[:, :-1])
        assert reading._placed is placed
        reading.keep([1])
        assert len(reading._placed.rows) == 2 * tiny_llava.TOKENS
        reading.next(ids[1:], mask[1:], None)
        assert reading._placed is None


def test_where_a_text_stands_in_its_batch_changes_no_bit(
    case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A picture's features, and so what is read, don't depend on what others show."""
    made, tower = case
    pixels = pixels_of(tmp_path_factory, tower, 3, seed=2)
    ids = np.array([[5] + [PLACEHOLDER] * tiny_llava.TOKENS + [6]] * 2)
    for model in made.models.values():
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        first, second = (model.logits({**given, "pixel_values": pixels[[0, other]]}) for other in (1, 2))
        assert np.array_equal(first[0], second[0])
        assert not np.array_equal(first[1], second[1])


def test_more_or_fewer_placeholders_than_pictures_are_refused(case: tuple[Made, TowerName]) -> None:
    made, _ = case
    ids, mask = prompts([2], seed=3)
    pixels = np.zeros((1, 3, tiny_llava.SIDE, tiny_llava.SIDE), np.float32)
    for model in made.models.values():
        with pytest.raises(ValueError, match="expected 4 placeholders for the features of pictures, found 8"):
            model.logits({"input_ids": ids, "attention_mask": mask, "pixel_values": pixels})


def test_a_task_takes_pixels_or_features(
    case: tuple[Made, TowerName], tmp_path_factory: pytest.TempPathFactory
) -> None:
    made, tower = case
    model = made.models["native"]
    assert isinstance(model, NativeModel)
    task, (ids, _) = model.task, prompts([2], seed=3)
    pixels = pixels_of(tmp_path_factory, tower, 2, seed=3)
    assert "pixel_values -> logits, hidden" in repr(task)
    shown = task(input_ids=ids, pixel_values=pixels)["logits"]
    placed = PlacedFeatures.of(ids, np.ones_like(ids), PLACEHOLDER, list(task.features(pixels)))
    assert np.array_equal(task(input_ids=ids, features=placed.rows, feature_index=placed.index)["logits"], shown)
    cache, half = KVCache(2**24), ids.shape[1] // 2
    for piece in (slice(0, half), slice(half, None)):
        found = task(cache, input_ids=ids[:, piece], features=placed.rows, feature_index=placed.index[:, piece])
    np.testing.assert_allclose(found["logits"], shown[:, half:], rtol=0, atol=CLOSE * np.abs(shown).max())
    with pytest.raises(ValueError, match="expected pixel_values or features, found both"):
        task(input_ids=ids, pixel_values=pixels, features=placed.rows, feature_index=placed.index)
    with pytest.raises(ValueError, match=r"input pixel_values: expected 4 axes, found \[3, 28, 28\]"):
        task(input_ids=ids, pixel_values=pixels[0])
    with pytest.raises(ValueError, match="input pixel_values: expected float32, found float64"):
        task(input_ids=ids, pixel_values=pixels.astype(np.float64))
    with pytest.raises(ValueError, match="input pixel_values: expected a size of 28 on axis 2"):
        task(input_ids=ids, pixel_values=pixels[:, :, :14])
    with pytest.raises(IndexError):
        task(input_ids=ids, features=placed.rows[:3], feature_index=placed.index)
