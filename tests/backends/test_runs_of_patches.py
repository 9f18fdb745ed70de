"""Pictures of any size as runs of patches, by native code and by torch, against transformers' own calls."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_qwen2_vl
from made_once import made_once
from tiny_qwen2_vl import FAMILIES, MERGE, PLACEHOLDER, WORDS, FamilyName
from weightpager.answers import model as forward_size
from weightpager.answers.model import Floats, Inputs, Integers, TaskModel, picture_parts, positions
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle.format.manifest import PatchRuns, Pictures
from weightpager.compiler.graph.export import export_graph
from weightpager.graph import Graph, read_graph, write_graph
from weightpager.graph.file import FEATURES

pytest.importorskip("weightpager.kernels._native")

from picture_models import KIND, grown, native_model, placed_in
from weightpager.backends.native.native_model import NativeModel

CLOSE, UNSURE = 1e-4, 1e-3
"""How far logits may be off; and two that differ by less may be rounded to either order."""

COUNTS = [1, 0, 3, 2]
"""Pictures of each text of a batch."""


def pictures_of(family: FamilyName) -> Pictures:
    window = tiny_qwen2_vl.window_of(family)
    places = {"token": tiny_qwen2_vl.IMAGE, "token_id": PLACEHOLDER, "tokens": 64, "width": 48}
    return Pictures(blocks="shared", layers=3 if window else 2, runs=PatchRuns(merge=MERGE, window=window), **places)


class Made:
    """A model by transformers, and what answers get of it."""

    def __init__(self, factory: pytest.TempPathFactory, family: FamilyName) -> None:
        self.form = pictures_of(family)
        self.module: Any = tiny_qwen2_vl.model(tiny_qwen2_vl.config(family)).requires_grad_(False)
        graphs = [_graph(factory, family, kind) for kind in (FEATURES, KIND)]
        native = native_model(*graphs, self.module, self.form)
        self.models: dict[str, TaskModel] = {"native": native, "torch": TorchModel(self.module, self.form)}


def _graph(factory: pytest.TempPathFactory, family: FamilyName, kind: str) -> Graph:
    def make(folder: Path) -> None:
        (folder / "graph.json").write_bytes(write_graph(export_graph(tiny_qwen2_vl.config(family), kind)))

    return read_graph("graph.json", (made_once(factory, f"runs-{family}-{kind}", make) / "graph.json").read_bytes())


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory, request.param)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than a picture and its words, so that some borders are inside of pictures."""
    monkeypatch.setattr(forward_size, "PIECE", 6)


def shown(
    factory: pytest.TempPathFactory, count: int, seed: int = 0, sides: tuple[int, int] = (5, 90)
) -> dict[str, np.ndarray]:
    """What transformers' processor makes of pictures of odd sizes: sides from the first to below the second."""
    folder, random = factory.mktemp("processor"), np.random.default_rng(seed)
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny_qwen2_vl.processor()), encoding="utf-8")
    images = []
    for _ in range(count):
        height, width = random.integers(*sides, 2)
        images.append(Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)))
    return dict(load_image_processor(folder)(images=images, return_tensors="np"))


def asked(pixels: dict[str, np.ndarray], counts: list[int], seed: int = 0) -> dict[str, np.ndarray]:
    """Texts with so many pictures each among words, padded on the left; pictures may stand side by side."""
    random, texts, grids = np.random.default_rng(seed), [], iter(pixels["image_grid_thw"].prod(1) // MERGE**2)
    for count in counts:
        text = [*random.integers(4, 16, random.integers(0, 4))]
        for _ in range(count):
            text += [PLACEHOLDER] * int(next(grids)) + [*random.integers(4, 16, random.integers(1, 5))]
        texts.append(text or [5])
    longest = max(map(len, texts))
    ids = np.array([[0] * (longest - len(text)) + text for text in texts], np.int64)
    mask = np.array([[0] * (longest - len(text)) + [1] * len(text) for text in texts], np.int64)
    kinds = (ids == PLACEHOLDER).astype(np.int64)
    return {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": kinds, **(pixels if sum(counts) else {})}


def by_transformers(module: Any, inputs: Inputs) -> Floats:
    module.model.rope_deltas = None
    with torch.inference_mode():
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        return np.asarray(module(**given).logits)


def by_generate(module: Any, inputs: Inputs, tokens: int) -> tuple[Integers, Floats]:
    """Transformers' own greedy tokens of a batch, and the logits that they were chosen by."""
    given = {name: torch.from_numpy(value) for name, value in inputs.items()}
    module.model.rope_deltas = None
    options = {"max_new_tokens": tokens, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        found = module.generate(**given, **options, output_logits=True, return_dict_in_generate=True)
    return found.sequences.numpy(), np.stack([each.numpy() for each in found.logits], 1)


def test_features_are_transformers(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each computed alone, so that no bit depends on the others."""
    inputs = shown(tmp_path_factory, 9)
    with torch.inference_mode():
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        wanted = [each.numpy() for each in made.module.get_image_features(**given).pooler_output]
    pixels, grids = picture_parts(inputs, made.form)
    assert grids is not None
    assert len({tuple(grid) for grid in grids}) > 4
    for model in made.models.values():
        found = model.features(pixels, grids)
        for ours, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
        last = len(found[-1])
        assert np.array_equal(model.features(pixels[-last:], grids[-1:])[0], found[-1])


@pytest.mark.parametrize("seed", range(3))
def test_texts_are_read_and_continued_as_transformers_would(
    made: Made, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    counts = [int(count) for count in np.random.default_rng(seed).permutation(COUNTS)]
    inputs = asked(shown(tmp_path_factory, sum(counts), seed), counts, seed)
    wanted, seen = by_transformers(made.module, inputs), inputs["attention_mask"] != 0
    tokens, logits = by_generate(made.module, inputs, 8)
    two = np.sort(logits[-1], -1)[:, -2:]
    sure = [*(two[:, 1] - two[:, 0] > UNSURE), False].index(False)  # behind an unsure one others may follow
    assert sure > 3
    end = inputs["input_ids"].shape[1] + sure
    for model in made.models.values():
        np.testing.assert_allclose(model.logits(inputs)[seen], wanted[seen], rtol=0, atol=CLOSE)
        assert np.array_equal(grown(model, inputs, made.form, 8)[:end], tokens[-1][:end])


@pytest.mark.slow
def test_logits_of_two_hundred_pictures_are_transformers(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A third of them has sides of a patch or two, down to a single pixel."""
    pictures, grids = 0, set()
    for seed, sides in zip(range(100, 134), cycle([(5, 90), (1, 9), (1, 160)]), strict=False):
        counts = [int(count) for count in np.random.default_rng(seed).permutation(COUNTS)]
        inputs = asked(shown(tmp_path_factory, sum(counts), seed, sides), counts, seed)
        wanted, seen = by_transformers(made.module, inputs), inputs["attention_mask"] != 0
        for model in made.models.values():
            np.testing.assert_allclose(model.logits(inputs)[seen], wanted[seen], rtol=0, atol=CLOSE)
        pictures, grids = pictures + sum(counts), grids | {tuple(grid) for grid in inputs["image_grid_thw"]}
    assert pictures >= 200
    assert len(grids) > 20


def test_texts_without_pictures_are_read_as_any(made: Made) -> None:
    inputs = asked({"image_grid_thw": np.empty((0, 3), np.int64)}, [0, 0, 0], seed=4)
    plain = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    wanted, seen = by_transformers(made.module, plain), plain["attention_mask"] != 0
    tokens, _ = by_generate(made.module, plain, 6)
    for model in made.models.values():
        np.testing.assert_allclose(model.logits(plain)[seen], wanted[seen], rtol=0, atol=CLOSE)
        assert np.array_equal(grown(model, plain, made.form, 6), tokens[-1])


def test_positions_are_transformers(made: Made, tmp_path_factory: pytest.TempPathFactory) -> None:
    inputs = asked(shown(tmp_path_factory, 6, 7), [2, 0, 3, 1], 7)
    placed = placed_in(made.models["torch"], inputs, made.form)
    assert placed is not None
    given = {name: torch.from_numpy(value) for name, value in inputs.items() if name != "pixel_values"}
    wanted, behind = made.module.model.get_rope_index(**given)
    seen = np.broadcast_to(inputs["attention_mask"] != 0, wanted.shape)
    assert placed.positions is not None
    assert np.array_equal(placed.positions[seen], wanted.numpy()[seen])
    more = np.pad(inputs["attention_mask"], ((0, 0), (0, 3)), constant_values=1)
    numbers = np.cumsum(more, 1)[:, -3:] - 1 + behind.numpy()
    assert np.array_equal(positions(more, placed.positions)[:, :, -3:], np.broadcast_to(numbers, (3, *numbers.shape)))
    assert np.array_equal(placed.of_texts([2]).positions, placed.positions[:, [2]])


def test_a_native_task_takes_pictures_as_transformers_names_them(
    made: Made, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inputs = asked(shown(tmp_path_factory, 2, 3), [2], 3)
    model = made.models["native"]
    assert isinstance(model, NativeModel)
    given = {name: value for name, value in inputs.items() if name not in ("attention_mask", "mm_token_type_ids")}
    np.testing.assert_allclose(model.task(**given)["logits"], by_transformers(made.module, inputs), rtol=0, atol=CLOSE)
    for grid in (None, np.array([[1, 3, 4]]), np.array([[1, 2, 2]]), np.zeros((2, 3), np.int64)):
        other = {**given, "image_grid_thw": grid} if grid is not None else dict(given)
        if grid is None:
            del other["image_grid_thw"]
        with pytest.raises(ValueError, match="input image_grid_thw: expected frames"):
            model.task(**other)


def test_a_placeholder_that_was_written_is_a_word(made: Made) -> None:
    ids = np.array([[5, PLACEHOLDER, 6]])
    for model in made.models.values():
        found = model.logits({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        assert found.shape == (1, 3, WORDS)
