"""Half-layers that a task has dropped: graphs of all families without them, against modules where they add zeros."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exported import exported, image_of
from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, config_of
from weightpager.blocks import BlockShape
from weightpager.bundle import TaskKind
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import give_values, in_pieces, logits, made_up
from weightpager.compiler.graph.export import empty_module_of
from weightpager.compiler.model.half_layers import HalfLayer, half_layers
from weightpager.compiler.model.paged_weights import parameters, sort_weights
from weightpager.errors import NotExportableError
from weightpager.graph import GraphOutput, reference
from weightpager.graph.dropped import replaced, without

pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.program import GraphProgram, KVCache

QUICK = ("Bert", "ViT", "Llama", "GPT2", "Gemma2", "Olmo2")
KINDS: list[tuple[Mapping[str, Mapping[str, Any]], TaskKind]] = [
    (ALL_ENCODERS, "text-classification"),
    (ALL_IMAGES, "image-classification"),
    (ALL_DECODERS, "language-modeling"),
]


def _cases() -> list[Any]:
    return [
        pytest.param(family, settings, kind, id=family, marks=() if family in QUICK else pytest.mark.slow)
        for families, kind in KINDS
        for family, settings in families.items()
    ]


def halves_of(module: Any) -> tuple[HalfLayer, ...]:
    paged, _ = sort_weights({"task": module}, BlockShape(16, 32), Path())
    return half_layers(paged)


@contextmanager
def zeroed(module: Any, dropped: Sequence[HalfLayer]) -> Iterator[None]:
    """A module of transformers whose sublayers give zeros."""

    def zeros(_: object, __: object, given: Any) -> Any:
        return torch.zeros_like(given)

    base = module.base_model_prefix
    with ExitStack() as hooks:
        for half in dropped:
            for name in half.weights:
                part = module.get_submodule(name.replace("base_model", base, 1))
                hooks.callback(part.register_forward_hook(zeros).remove)
        yield


@pytest.mark.parametrize(("family", "settings", "kind"), _cases())
def test_a_graph_without_half_layers_gives_what_the_module_gives_where_they_are_zeros(
    tmp_path_factory: pytest.TempPathFactory, family: str, settings: Mapping[str, Any], kind: TaskKind
) -> None:
    try:
        graph = exported(tmp_path_factory, family, kind)
    except NotExportableError as error:
        pytest.skip(str(error))
    form, module = CallForm.of(kind, image_of(kind)), empty_module_of(config_of(family, settings), kind, 5)
    give_values(module)
    halves = halves_of(module)
    assert len(halves) >= 2
    values = {name: tensor.detach().numpy() for name, tensor in parameters(module).items()}
    rng = np.random.default_rng(0)
    chosen: list[Sequence[HalfLayer]] = [
        [],
        halves,
        [halves[0]],
        [halves[-1]],
        *([h for h in halves if rng.random() < 0.5] for _ in range(3)),
    ]
    inputs = made_up(form, module, 3, 9)
    for dropped in chosen:
        with zeroed(module, dropped):
            wanted = logits(module, inputs)
        weights = {f"{name}.weight" for half in dropped for name in half.weights}
        left = without(graph, weights)
        used = {*left.parameters()}
        assert used.isdisjoint(weights)
        sums = replaced(graph, weights)
        outputs = tuple(GraphOutput(name, name) for name in {*sums, *sums.values()})
        shapes = GraphProgram(replace(graph, outputs=outputs), values).shapes(3, 9)
        assert [shapes[name] for name in sums] == [shapes[name] for name in sums.values()]
        assert bool(sums) == bool(dropped)
        seen: Any = inputs["attention_mask"] != 0 if wanted.ndim == 3 else slice(None)
        limit = 1e-5 * max(1.0, float(np.abs(wanted).max()))
        program = GraphProgram(left, {name: values[name] for name in used})
        found = program.run(inputs, threads=2)["logits"]
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=limit)
        plain = reference.run(left, values, inputs)["logits"]
        np.testing.assert_allclose(plain[seen], wanted[seen], rtol=0, atol=limit)
        if kind == "language-modeling":
            pieces = in_pieces(left, values, inputs, (4, 5, 9))
            np.testing.assert_allclose(pieces[seen], wanted[seen], rtol=0, atol=limit)
            cache, parts = KVCache(2**24), []
            for start, end in ((0, 4), (4, 5), (5, 9)):
                cut = {name: each[:, start:end] for name, each in inputs.items()}
                cut["attention_mask"] = inputs["attention_mask"][:, :end]
                parts.append(program.run(cut, cache)["logits"])
            np.testing.assert_allclose(np.concatenate(parts, 1)[seen], wanted[seen], rtol=0, atol=limit)
            assert cache.bytes == 3 * program.cache_block_bytes()
            whole = GraphProgram(graph, values).cache_block_bytes()
            gone = sum(any("attn" in name or "attention" in name for name in half.weights) for half in dropped)
            assert program.cache_block_bytes() == whole * (len(halves) // 2 - gone) // (len(halves) // 2)
            cache.select([2, 0])
            assert cache.batch == 2
            with pytest.raises(ValueError, match="expected a KV cache for a batch of 2"):
                program.run(inputs, cache)
