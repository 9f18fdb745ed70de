"""Graphs of models that read pictures among their words: what is in them, and what leaves none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export._trace import _compiling_state_context

import tiny_llava
from picture_models import KIND, PIXELS, config_of, features_graph, words_graph
from tiny_llava import LANGUAGES, TOWERS, LanguageName, TowerName
from weightpager.bundle import BundleWriter
from weightpager.compiler.graph import export
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import give_values, in_pieces, made_up, result
from weightpager.compiler.graph.export import empty_module_of, export_graph, form_of, write_graphs
from weightpager.compiler.graph.translate import in_this_thread_alone
from weightpager.compiler.model.paged_weights import parameters
from weightpager.errors import NotExportableError
from weightpager.graph import Graph
from weightpager.graph.file import FEATURES, graph_file
from weightpager.graph.reference import run


def layers_of(graph: Graph) -> set[int]:
    """The tower's layers that its graph takes parameters of."""
    names = [name.removeprefix("base_model.vision_tower.encoder.") for name in graph.parameters()]
    return {int(name.split(".")[1]) for name in names if name.startswith("layer")}


def check(graph: Graph, config: Any) -> None:
    """It gives what its module gives, however many pictures, texts and tokens there are."""
    form, module = form_of(config, graph.kind, PIXELS), empty_module_of(config, graph.kind, 0)
    give_values(module)
    values = {name: np.asarray(tensor.detach()) for name, tensor in parameters(module).items()}
    for texts, tokens in ((3, 9), (1, 4)):
        inputs = made_up(form, module, texts, tokens)
        wanted = result(module, form, inputs)
        seen: Any = inputs["attention_mask"] != 0 if graph.kind == KIND else slice(None)
        limit = 1e-5 * max(1.0, float(np.abs(wanted).max()))
        found = run(graph, values, inputs)[form.outputs[0]]
        np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=limit)
        for split in range(1, tokens if graph.kind == KIND else 0):
            pieces = in_pieces(graph, values, inputs, (split, tokens))
            np.testing.assert_allclose(pieces[seen], wanted[seen], rtol=0, atol=limit)


@pytest.mark.parametrize("tower", TOWERS)
def test_a_towers_graph_holds_what_features_pass(tmp_path_factory: pytest.TempPathFactory, tower: TowerName) -> None:
    """The last of three layers, the norm behind it and SigLIP's head aren't read; nor is any of the language model."""
    graph = features_graph(tmp_path_factory, tower)
    assert (graph.dims, [each.name for each in graph.outputs]) == (("batch",), ["features"])
    assert [(each.name, each.shape) for each in graph.inputs] == [("pixel_values", ("batch", *PIXELS))]
    assert layers_of(graph) == {0, 1}
    assert not any("post_layernorm" in name or ".head." in name for name in graph.parameters())
    found = Counter(node.op for node in graph.nodes)
    assert (found["attention"], found["conv2d"], found["matmul"]) == (2, 1, 2 * (tower == "dinov2"))
    assert all(node.inputs[3] is None and not node.attributes["causal"] for node in graph.attentions)
    check(graph, config_of(tower, "llama"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_features_take_the_place_of_words(tmp_path_factory: pytest.TempPathFactory, language: LanguageName) -> None:
    graph = words_graph(tmp_path_factory, language)
    assert graph.dims == ("batch", "length", "features")
    inputs = [(each.name, each.dtype, each.shape) for each in graph.inputs]
    assert inputs[-2:] == [
        ("feature_index", "int64", ("batch", "length")),
        ("features", "float32", ("features", 48)),
    ]
    assert not any("vision_tower" in name or "projector" in name for name in graph.parameters())
    found = Counter(node.op for node in graph.nodes)
    assert (found["take"], found["where"], found["embedding"], found["gated_linear"]) == (1, 2, 1, 2)
    check(graph, config_of("clip", language))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "settings"),
    [
        ("clip", {"feature_layer": -1}),
        ("clip", {"feature_layer": [1, -1]}),
        ("siglip", {"feature_layer": -1}),
        ("dinov2", {"feature_layer": -1}),
        ("dinov2", {"feature_layer": [-2, 2, 3], "vision_feature_select_strategy": "full"}),
        ("clip", {"vision_feature_select_strategy": "full", "multimodal_projector_bias": False}),
        ("siglip", {"projector_hidden_act": "gelu_pytorch_tanh"}),
    ],
)
def test_settings_that_change_what_features_are(tower: TowerName, settings: Mapping[str, Any]) -> None:
    config = config_of(tower, "llama", **settings)
    graph = export_graph(config, FEATURES, PIXELS)
    check(graph, config)
    layers = settings.get("feature_layer", -2)
    last = max(layer % 4 for layer in ([layers] if isinstance(layers, int) else layers))
    assert layers_of(graph) == set(range(last))


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"use_swiglu_ffn": True}, {"image_size": 70, "qkv_bias": False}])
def test_a_dinov2_of_other_settings(change: Mapping[str, Any]) -> None:
    config = config_of("dinov2", "llama")
    for name, value in change.items():
        setattr(config.vision_config, name, value)
    check(export_graph(config, FEATURES, PIXELS), config)


@pytest.mark.slow
def test_pictures_need_not_be_square() -> None:
    config = config_of("dinov2", "llama")
    graph = export_graph(config, FEATURES, (3, 42, 14))
    assert graph.inputs[0].shape == ("batch", 3, 42, 14)


def test_both_graphs_are_written_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def exporting(_config: object, kind: str, _image: object) -> bytes | str:
        asked.append(kind)
        return "a tower of cards" if kind == FEATURES and len(asked) == 1 else b"a graph"

    monkeypatch.setattr(export, "_exported", exporting)
    config, writer = tiny_llava.config(), BundleWriter(tmp_path)
    assert write_graphs(writer, config, [KIND, KIND], PIXELS) == {KIND: "a tower of cards"}
    assert not any(tmp_path.rglob("graph-*"))
    assert write_graphs(writer, config, [KIND], PIXELS) == {}
    assert asked == [FEATURES, FEATURES, KIND]
    assert all((tmp_path / graph_file(kind)).is_file() for kind in (FEATURES, KIND))
    assert write_graphs(writer, config, [KIND], PIXELS) == {}
    assert len(asked) == 3


def test_pictures_of_no_fixed_size_have_no_graph(tmp_path: Path) -> None:
    found = write_graphs(BundleWriter(tmp_path), tiny_llava.config(), [KIND], None)
    assert found == {KIND: "pictures of no fixed size"}


@pytest.mark.slow
def test_other_threads_collect_their_own_hidden_states_meanwhile() -> None:
    """Transformers collects for the whole process what it takes to be compiled."""
    module = tiny_llava.model(tiny_llava.config()).base_model.vision_tower
    pixels = torch.zeros(1, *PIXELS)

    def states() -> list[int]:
        with torch.no_grad():
            return [len(module(pixels, output_hidden_states=True).hidden_states) for _ in range(50)]

    with in_this_thread_alone(), ThreadPoolExecutor(1) as others, _compiling_state_context():
        elsewhere = others.submit(states)
        assert states() == [4] * 50
        assert elsewhere.result() == [4] * 50


@pytest.mark.parametrize("size", [(3, 5), (8, 8), (2, 2)])
def test_bicubic_scaling_is_two_products(size: tuple[int, int]) -> None:
    from weightpager.compiler.graph.aten.products import _bicubic_matrix

    image = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    for align in (False, True):
        wanted = torch.nn.functional.interpolate(
            torch.from_numpy(image)[None, None], size, mode="bicubic", align_corners=align
        )[0, 0].numpy()
        rows, columns = (_bicubic_matrix(4, each, align) for each in size)
        np.testing.assert_allclose(rows @ image @ columns.T, wanted, rtol=0, atol=1e-6)


def test_forms_state_their_dimensions() -> None:
    assert CallForm.of_pictures(PIXELS).dims == ("batch",)
    assert CallForm.with_features(KIND, 8).dims == ("batch", "length", "features")
    assert CallForm.of(KIND).dims == ("batch", "length")
    with pytest.raises(NotExportableError, match="pictures of no fixed size"):
        CallForm.of_pictures(None)
