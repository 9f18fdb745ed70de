"""Pictures as tiles, by native code and by torch, against transformers' own calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_next
import tiny_tiles
from made_once import made_once
from tiny_llava import SIDE
from tiny_tiles import IMAGE, PLACEHOLDER, PLACES
from weightpager.answers import model as forward_size
from weightpager.answers.generation import completions
from weightpager.answers.model import Inputs, TaskModel, picture_features, picture_parts
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.backends.torch.torch_model import TorchModel
from weightpager.bundle.format.manifest import PackedTiles, Pictures, Tiles
from weightpager.compiler.data import reader_of
from weightpager.compiler.graph.builder import number_patches
from weightpager.compiler.graph.export import export_graph
from weightpager.graph import Graph, read_graph, write_graph
from weightpager.graph.file import FEATURES
from weightpager.readers.picture_reader import PictureReader

pytest.importorskip("weightpager.kernels._native")

from picture_models import KIND, grown, native_model

CLOSE, UNSURE = 1e-4, 1e-3
"""How far logits may be off; and two that differ by less may be rounded to either order."""

COUNTS = [1, 0, 3, 2]
"""Pictures of each text of a batch."""

MODULES: dict[str, Any] = {family: module for module in (tiny_tiles, tiny_next) for family in module.FAMILIES}
"""What makes the models of a family."""

SIDES = {tiny_tiles: tiny_tiles.SIDE, tiny_next: SIDE}
"""Pixels of a tile's side."""


def form_of(family: str) -> Pictures:
    stated = {"blocks": "shared", "layers": 2, "token": IMAGE, "token_id": PLACEHOLDER, "tokens": 40, "width": 48}
    if MODULES[family] is tiny_next:
        sizes = [(height, width) for height, width in tiny_next.SIZES]
        return Pictures(**stated, packed=PackedTiles(side=SIDE, patches=tiny_next.PATCHES, sizes=sizes))
    return Pictures(**stated, tiles=Tiles(places=PLACES, border=tiny_tiles.BORDER, whole=tiny_tiles.WHOLE))


class Made:
    """A model by transformers, and what answers get of it."""

    def __init__(self, factory: pytest.TempPathFactory, family: str) -> None:
        of, folder = MODULES[family], factory.mktemp("processor")
        (folder / "preprocessor_config.json").write_text(json.dumps(of.processor(family)), encoding="utf-8")
        images, tokenizer = load_image_processor(folder), of.tokenizer()
        tokenizer.padding_side = "left"
        self.form, self.packs = form_of(family), of is tiny_next
        self.processor = of.whole_processor(images, tokenizer, family)
        self.reader = reader_of(tokenizer, PictureReader.of(images.to_dict(), self.form))
        self.module: Any = of.model(of.config(family)).requires_grad_(False)
        native = native_model(*(_graph(factory, family, kind) for kind in (FEATURES, KIND)), self.module, self.form)
        self.models: dict[str, TaskModel] = {"native": native, "torch": TorchModel(self.module, self.form)}

    def asked(self, counts: list[int], seed: int) -> dict[str, np.ndarray]:
        """What transformers' processor makes of texts with so many pictures each."""
        random = np.random.default_rng(seed)
        images = [[noise(random) for _ in range(count)] for count in counts]
        texts = [" ".join([*random.choice(["red", "cat"], 1 + seed), *[IMAGE, "two"] * count]) for count in counts]
        shown = [each for of_text in images for each in of_text] if self.packs else images
        options: dict[str, Any] = {"padding": True, "add_special_tokens": False, "return_tensors": "np"}
        found = dict(self.processor(text=texts, images=shown, **options))
        return {name: value if value.dtype == np.float32 else value.astype(np.int64) for name, value in found.items()}


def noise(random: np.random.Generator) -> Image.Image:
    """Of an odd size; some are narrow, and some larger than all tiles together."""
    height, width = random.integers(3, 90, 2)
    return Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8))


def _graph(factory: pytest.TempPathFactory, family: str, kind: str) -> Graph:
    of = MODULES[family]
    pixels = (3, SIDES[of], SIDES[of])

    def make(folder: Path) -> None:
        (folder / "graph.json").write_bytes(write_graph(export_graph(of.config(family), kind, pixels)))

    return read_graph("graph.json", (made_once(factory, f"tiles-{family}-{kind}", make) / "graph.json").read_bytes())


@pytest.fixture(scope="module", params=MODULES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory, request.param)


@pytest.fixture(autouse=True)
def _short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than a tile and its words, so that some borders are inside of tiles."""
    monkeypatch.setattr(forward_size, "PIECE", 6)


def tensors(inputs: Inputs) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in inputs.items()}


def test_features_are_transformers(made: Made) -> None:
    """Each tile's computed alone, so that no bit depends on the others."""
    inputs = made.asked([3, 1, 4], 0)
    with torch.inference_mode():
        given = tensors({name: inputs[name] for name in inputs if name.startswith(("pixel", "image"))})
        wanted = torch.cat(list(made.module.model.get_image_features(**given).pooler_output)).numpy()
    pixels, grids = picture_parts(inputs, made.form)
    assert grids is None
    for model in made.models.values():
        found, _ = picture_features(inputs, made.form, model.features)
        np.testing.assert_allclose(np.concatenate(found), wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        assert np.array_equal(model.features(pixels[-1:])[0], model.features(pixels)[-1])


@pytest.mark.parametrize("seed", range(3))
def test_texts_are_read_and_continued_as_transformers_would(made: Made, seed: int) -> None:
    inputs = made.asked([int(count) for count in np.random.default_rng(seed).permutation(COUNTS)], seed)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with torch.inference_mode():
        wanted = made.module(**tensors(inputs)).logits.numpy()
        ours = made.module.generate(**tensors(inputs), **options, output_logits=True, return_dict_in_generate=True)
    two, seen = torch.stack(ours.logits, 1)[-1].sort(-1).values[:, -2:], inputs["attention_mask"] != 0
    sure = [*(two[:, 1] - two[:, 0] > UNSURE).tolist(), False].index(False)  # behind an unsure one others may follow
    assert sure > 3
    end = inputs["input_ids"].shape[1] + sure
    for model in made.models.values():
        np.testing.assert_allclose(model.logits(inputs)[seen], wanted[seen], rtol=0, atol=CLOSE)
        assert np.array_equal(grown(model, inputs, made.form, 8)[:end], ours.sequences[-1][:end].numpy())


def test_what_is_measured_is_what_is_answered(made: Made) -> None:
    """A compile's batches have the pixels of all tiles; each is as good as a picture of its own."""
    inputs = made.asked([2, 1], 5)
    found = [completions(model, made.reader, inputs, 4) for model in made.models.values()]
    assert found[0] == found[1]
    without = {name: value for name, value in inputs.items() if name != "pixel_values"}
    sizes = {"image_sizes": inputs["image_sizes"][1:]} if made.packs else {}
    other = {**without, "pixel_values": inputs["pixel_values"][1:], **sizes}
    with pytest.raises(ValueError, match="expected prompts with .* placeholders each"):
        completions(made.models["native"], made.reader, other, 4)


def test_a_native_task_takes_pictures_as_transformers_names_them(made: Made) -> None:
    inputs, task = made.asked([2], 3), made.models["native"].task  # type: ignore[attr-defined]
    with torch.inference_mode():
        wanted = made.module(**tensors(inputs)).logits.numpy()
    given = {name: value for name, value in inputs.items() if name != "attention_mask"}
    np.testing.assert_allclose(task(**given)["logits"], wanted, rtol=0, atol=CLOSE)
    if made.packs:
        for sizes in (None, inputs["image_sizes"][1:], inputs["image_sizes"] * 0):
            other = {name: value for name, value in given.items() if name != "image_sizes"}
            with pytest.raises(ValueError, match="input image_sizes: expected heights and widths"):
                task(**other, **({} if sizes is None else {"image_sizes": sizes}))
        return
    tiles = {"input_ids": inputs["input_ids"], "pixel_values": picture_parts(inputs, made.form)[0]}
    np.testing.assert_allclose(task(**tiles)["logits"], wanted, rtol=0, atol=CLOSE)
    mask = inputs["pixel_attention_mask"].copy()
    mask[0, 0, 0] = 0
    with pytest.raises(ValueError, match="input pixel_attention_mask: expected whole tiles, found some"):
        task(**given | {"pixel_attention_mask": mask})
    with pytest.raises(ValueError, match="placeholders for the features of pictures"):
        task(**tiles | {"pixel_values": tiles["pixel_values"][1:]})


@pytest.mark.parametrize(("size", "patch"), [(512, 16), (364, 14), (384, 14), (60, 4), (98, 2)])
def test_patches_of_whole_tiles_are_numbered_as_the_tower_does(size: int, patch: int) -> None:
    """It rounds fractions of a side."""
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = tiny_tiles.config(vision_config=vision | {"image_size": size, "patch_size": patch})
    module, seen, side = tiny_tiles.model(config), list[torch.Tensor](), size // patch
    embeddings = module.model.vision_model.embeddings
    embeddings.position_embedding.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embeddings(torch.zeros(1, 3, size, size), torch.ones(1, side, side, dtype=torch.bool))
    number_patches(module)
    assert torch.equal(embeddings.position_ids, seen[0])
