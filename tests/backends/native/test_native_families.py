"""Graphs of tiny models of the architectures that docs/own-model.md names, run by native code and by torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from exported import exported, image_of
from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, config_of
from weightpager.answers.model import CacheSize
from weightpager.bundle import TaskKind
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import give_values, logits, made_up
from weightpager.compiler.graph.export import empty_module_of
from weightpager.compiler.model.paged_weights import parameters
from weightpager.errors import NotExportableError

pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.model_limits import ModelConfig
from weightpager.backends.native.program import GraphProgram, KVCache
from weightpager.backends.native.task import NativeTask

CLOSE = {"float32": 1e-5, "bfloat16": 1e-5}
"""How close logits are, in parts of the largest one, by the parameters' dtype. The module has the same rounded values
and computes in float32, as native code does."""

QUICK = ("Bert", "ViT", "Llama")
KINDS: list[tuple[Mapping[str, Mapping[str, Any]], TaskKind]] = [
    (ALL_ENCODERS, "text-classification"),
    (ALL_IMAGES, "image-classification"),
    (ALL_DECODERS, "language-modeling"),
    (ALL_DECODERS, "text-classification"),
]


def _cases() -> list[Any]:
    return [
        pytest.param(
            family,
            settings,
            kind,
            dtype,
            id=f"{family}-{kind}-{dtype}",
            marks=() if family in QUICK else pytest.mark.slow,
        )
        for families, kind in KINDS
        for family, settings in families.items()
        for dtype in CLOSE
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "settings", "kind", "dtype"), _cases())
def test_native_code_gives_what_the_module_gives(
    tmp_path_factory: pytest.TempPathFactory, family: str, settings: Mapping[str, Any], kind: TaskKind, dtype: str
) -> None:
    """Whole texts, padded, and texts whose beginning is in memory."""
    try:
        graph = exported(tmp_path_factory, family, kind)
    except NotExportableError as error:
        pytest.skip(str(error))
    form, module = CallForm.of(kind, image_of(kind)), empty_module_of(config_of(family, settings), kind, 5)
    give_values(module)
    program = GraphProgram(graph, _values(module, dtype))
    for texts, tokens in ((3, 9), (1, 4), (2, 1)):
        inputs = made_up(form, module, texts, tokens)
        wanted = logits(module, inputs)
        seen: Any = inputs["attention_mask"] != 0 if wanted.ndim == 3 else slice(None)
        limit = CLOSE[dtype] * max(1.0, float(np.abs(wanted).max()))
        found = program.run(inputs, threads=2)["logits"]
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=limit)
        assert np.array_equal(program.run(inputs, threads=1)["logits"], found)
        if kind == "language-modeling":
            for split in range(1, tokens):
                pieces = _in_pieces(program, inputs, split)
                np.testing.assert_allclose(pieces[seen], wanted[seen], rtol=0, atol=limit)


def _values(module: torch.nn.Module, dtype: str) -> dict[str, Any]:
    """A module's parameters as programs take them; it gets the rounded ones."""
    if dtype == "bfloat16":
        for tensor in parameters(module).values():
            if tensor.is_floating_point():
                tensor.data = tensor.data.bfloat16().float()
    found = {name: tensor.detach() for name, tensor in parameters(module).items()}
    return {
        name: tensor.bfloat16().view(torch.uint16).numpy()
        if dtype == "bfloat16" and tensor.is_floating_point()
        else tensor.numpy()
        for name, tensor in found.items()
    }


def _in_pieces(program: GraphProgram, inputs: Mapping[str, Any], split: int) -> Any:
    cache, found = KVCache(2**24), []
    for piece in (slice(0, split), slice(split, None)):
        cut = {name: each[:, piece] for name, each in inputs.items()}
        cut["attention_mask"] = inputs["attention_mask"][:, : piece.stop]  # of earlier tokens, too
        found.append(program.run(cut, cache)["logits"])
    assert cache.bytes == len(inputs["input_ids"]) * program.cache_block_bytes()
    return np.concatenate(found, 1)


class _Open:
    """A gate whose pages are all there."""

    def enter(self, layer: int) -> None:
        """At once."""

    def leave(self, layer: int) -> None:
        """At once."""


def _paddings() -> list[np.ndarray]:
    """Masks of three texts, the first whole: padded on the right, on the left, and on both sides."""
    masks, random = [], np.random.default_rng(0)
    for right, left in ((True, False), (False, True), (True, True)):
        mask = np.ones((3, 9), np.int64)
        for text in mask[1:]:
            text[9 - random.integers(1, 4) * right :] = 0
            text[: random.integers(1, 4) * left] = 0
        masks.append(mask)
    return masks


@pytest.mark.parametrize(
    ("family", "settings", "kind"),
    [
        pytest.param(family, settings, kind, marks=() if family == "OPT" else pytest.mark.slow)
        for families, kind in KINDS
        for family, settings in families.items()
        if kind != "image-classification"
    ],
)
def test_padding_on_any_side_is_what_it_is_to_the_module(
    tmp_path_factory: pytest.TempPathFactory, family: str, settings: Mapping[str, Any], kind: TaskKind
) -> None:
    """Where no positions are stated, in one piece and in two."""
    try:
        graph = exported(tmp_path_factory, family, kind)
    except NotExportableError as error:
        pytest.skip(str(error))
    config = config_of(family, settings)
    module, said = empty_module_of(config, kind, 5), ModelConfig(json.loads(config.to_json_string()))
    give_values(module)
    programs = (GraphProgram(graph, _values(module, "float32")),)
    task = NativeTask("a", graph, programs, _Open(), said.context, CacheSize(), numbers_by_mask=said.numbers_by_mask)
    for mask in _paddings():
        ids = np.where(mask == 0, config.pad_token_id or 0, np.random.default_rng(1).integers(1, 16, mask.shape))
        wanted = logits(module, {"input_ids": ids, "attention_mask": mask})
        seen: Any = mask != 0 if wanted.ndim == 3 else slice(None)
        limit = CLOSE["float32"] * max(1.0, float(np.abs(wanted[seen]).max()))
        found = task(input_ids=ids, attention_mask=mask)["logits"]
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=limit)
        if kind == "language-modeling":
            cache = KVCache(2**24)
            first = task(cache, input_ids=ids[:, :4], attention_mask=mask[:, :4])["logits"]
            pieces = np.concatenate([first, task(cache, input_ids=ids[:, 4:], attention_mask=mask)["logits"]], 1)
            np.testing.assert_allclose(pieces[seen], wanted[seen], rtol=0, atol=limit)
