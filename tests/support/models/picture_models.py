"""Tiny models that read pictures among their words, as transformers, torch and native code have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaConfig

import tiny_llava
from made_once import made_once
from tiny_llava import SIDE, TOKENS, LanguageName, TowerName
from weightpager.answers.model import (
    CacheSize,
    Floats,
    Inputs,
    Integers,
    PlacedFeatures,
    TaskModel,
    picture_features,
)
from weightpager.answers.work import Sampling
from weightpager.backends.native.model_limits import ModelConfig
from weightpager.backends.native.native_model import NativeModel
from weightpager.backends.native.program import GraphProgram, stages
from weightpager.backends.native.task import NativeTask
from weightpager.backends.torch.architecture import load_image_processor
from weightpager.bundle.format.manifest import Pictures, TaskKind
from weightpager.compiler.graph.export import export_graph
from weightpager.compiler.model.paged_weights import parameters
from weightpager.graph import Graph, read_graph, write_graph
from weightpager.graph.file import FEATURES

PIXELS = (3, SIDE, SIDE)
PLACEHOLDER = 16
PICTURES = Pictures(blocks="shared", layers=2, token="<image>", token_id=PLACEHOLDER, tokens=TOKENS, width=48)
KIND: TaskKind = "text-generation"


def config_of(tower: TowerName, language: LanguageName, **settings: Any) -> LlavaConfig:
    """DINOv2's positions are of larger pictures than it is shown, and so are interpolated."""
    config = tiny_llava.config(tower, language, **settings)
    if tower == "dinov2":
        config.vision_config.image_size = SIDE * 3 // 2
    return config


def features_graph(factory: pytest.TempPathFactory, tower: TowerName) -> Graph:
    """The same before any language model of the width."""
    return _graph(factory, tower, FEATURES, config_of(tower, "llama"))


def words_graph(factory: pytest.TempPathFactory, language: LanguageName) -> Graph:
    """The same behind any tower."""
    return _graph(factory, language, KIND, config_of("clip", language))


def _graph(factory: pytest.TempPathFactory, name: str, kind: str, config: LlavaConfig) -> Graph:
    def make(folder: Path) -> None:
        (folder / "graph.json").write_bytes(write_graph(export_graph(config, kind, PIXELS)))

    return read_graph("graph.json", (made_once(factory, f"pictures-{name}", make) / "graph.json").read_bytes(), kind)


class OpenGate:
    """A gate whose pages are all there."""

    def enter(self, reader: object, layer: int) -> None:
        """At once."""

    def leave(self, reader: object) -> None:
        """At once."""

    def note_read(self) -> None:
        """Nothing is counted."""


def native_model(features: Graph, words: Graph, module: Any, pictures: Pictures = PICTURES) -> NativeModel:
    """A module's values, run by graphs."""
    values = {name: np.asarray(tensor.detach()) for name, tensor in parameters(module).items()}
    below, head = (GraphProgram(each, values) for each in stages(words, values))
    size = CacheSize(below.cache_block_bytes() // 64, 64)
    limits = ModelConfig(json.loads(module.config.text_config.to_json_string())).limits(
        takes_images=False, pictures=pictures
    )
    tower = GraphProgram(features, values)
    task = NativeTask("a", words, (below, head), OpenGate(), limits.context, size, features=tower, pictures=pictures)
    return NativeModel(task, limits, frozenset())


def placed_in(model: TaskModel, inputs: Inputs, form: Pictures) -> PlacedFeatures | None:
    """The features of a batch's pictures in their places."""
    if "pixel_values" not in inputs:
        return None
    seen = picture_features(inputs, form, model.features)
    return PlacedFeatures.of(inputs["input_ids"], inputs["attention_mask"], form.token_id, *seen)


def grown(model: TaskModel, inputs: Inputs, form: Pictures, tokens: int) -> Integers:
    """The last text, read in pieces beside the others and continued in two steps."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    texts = model.grow(ids, mask, Sampling(), 0, tokens, placed_in(model, inputs, form))
    while texts.unread:
        texts.read_piece()
    for most, kept in ((2, [len(ids) - 1]), (tokens - 2, [0])):
        texts.grow(most, lambda found: np.zeros(len(found), bool))
        texts.keep(kept)
    return texts.ids[0]


def pixels_of(factory: pytest.TempPathFactory, tower: TowerName, count: int, seed: int = 0) -> Floats:
    """Pictures of odd sizes, as transformers' processor makes pixels of them."""
    folder, random = factory.mktemp("processor"), np.random.default_rng(seed)
    (folder / "preprocessor_config.json").write_text(json.dumps(tiny_llava.processor(tower)), encoding="utf-8")
    processor = load_image_processor(folder, config_of(tower, "llama"))
    shown = []
    for _ in range(count):
        height, width = random.integers(5, 90, 2)
        shown.append(Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)))
    return np.asarray(processor(images=shown, return_tensors="np")["pixel_values"], np.float32)


def prompts(pictures: list[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Texts with so many pictures each, among words; ids and mask, padded on the left."""
    random = np.random.default_rng(seed)
    texts = []
    for count in pictures:
        text = [*random.integers(4, 16, random.integers(0, 4))]
        for _ in range(count):
            text += [PLACEHOLDER] * TOKENS + [*random.integers(4, 16, random.integers(0, 5))]
        texts.append(text or [5])
    longest = max(map(len, texts))
    ids = np.array([[0] * (longest - len(text)) + text for text in texts], np.int64)
    mask = np.array([[0] * (longest - len(text)) + [1] * len(text) for text in texts], np.int64)
    return ids, mask
