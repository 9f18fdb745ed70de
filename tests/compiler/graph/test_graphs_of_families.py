"""Graphs of tiny random models of every architecture that docs/own-model.md names, compared with torch's modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, cast

import numpy as np
import pytest
from transformers import PretrainedConfig
from transformers.models.cohere import modeling_cohere
from transformers.models.llama import modeling_llama

from exported import exported, exported_plain, image_of
from families import ALL_DECODERS, ALL_ENCODERS, ALL_IMAGES, DECODER, MIXTURES, WITHOUT_GRAPH, config_of
from weightpager.bundle import TaskKind
from weightpager.compiler.graph.builder import CallForm
from weightpager.compiler.graph.check import give_values, in_pieces, logits, made_up
from weightpager.compiler.graph.export import empty_module_of, export_graph
from weightpager.compiler.graph.passes import simplified
from weightpager.compiler.graph.translate import draft_of
from weightpager.compiler.model.paged_weights import parameters
from weightpager.errors import NotExportableError
from weightpager.graph import Graph, read_graph, write_graph
from weightpager.graph.reference import run

COHERE: Mapping[str, Any] = {**DECODER, "bos_token_id": 2, "eos_token_id": 3}

_KINDS: list[tuple[Mapping[str, Mapping[str, Any]], TaskKind]] = [
    (ALL_ENCODERS, "text-classification"),
    (ALL_ENCODERS, "token-classification"),
    (ALL_IMAGES, "image-classification"),
    (ALL_DECODERS, "language-modeling"),
    (ALL_DECODERS, "text-classification"),
    (ALL_DECODERS, "token-classification"),
]
_WITHOUT_TOKENS = ("Olmo", "Olmo2", "OPT")  # transformers has no such class of them


def _marks(kind: str) -> pytest.MarkDecorator:
    """Labels of tokens come of the layers that other kinds go through, and of a head like a text's."""
    return pytest.mark.long if kind == "token-classification" else pytest.mark.slow


def _cases() -> list[Any]:
    """Every architecture with every kind of tasks."""
    found = []
    for families, kind in _KINDS:
        missing = {*WITHOUT_GRAPH, *(_WITHOUT_TOKENS if kind == "token-classification" else ())}
        found += [
            pytest.param(family, config, kind, id=f"{family}-{kind}", marks=_marks(kind))
            for family, config in families.items()
            if family not in missing
        ]
    return found


def check(graphs: Sequence[Graph], config: PretrainedConfig) -> None:
    """Each gives what the module gives, however many texts and tokens there are."""
    assert write_graph(read_graph("g.json", write_graph(graphs[0]))) == write_graph(graphs[0])
    kind = cast(TaskKind, graphs[0].kind)
    form, module = CallForm.of(kind, image_of(kind)), empty_module_of(config, kind, 5)
    give_values(module)
    values = {name: np.asarray(tensor.detach()) for name, tensor in parameters(module).items()}
    for texts, tokens in ((3, 9), (1, 4), (2, 1)):
        inputs = made_up(form, module, texts, tokens)
        wanted = logits(module, inputs)
        per_token = wanted.ndim == 3
        seen: Any = inputs["attention_mask"] != 0 if per_token else slice(None)
        limit = 1e-5 * max(1.0, float(np.abs(wanted).max()))
        for graph in graphs:
            assert set(graph.parameters()) <= set(values)
            np.testing.assert_allclose(run(graph, values, inputs)["logits"][seen], wanted[seen], rtol=0, atol=limit)
        if kind == "language-modeling":
            for split in range(1, tokens):
                found = in_pieces(graphs[0], values, inputs, (split, tokens))
                np.testing.assert_allclose(found[seen], wanted[seen], rtol=0, atol=limit)


def changed(family: str, changes: Mapping[str, Any], kind: TaskKind) -> Graph:
    """The graph of an architecture with other settings, compared with its module."""
    config = config_of(family, {**ALL_ENCODERS, **ALL_DECODERS}[family] | dict(changes))
    graph = export_graph(config, kind)
    check([graph], config)
    return graph


@pytest.mark.parametrize(("family", "settings", "kind"), _cases())
def test_a_graph_gives_what_its_module_gives(
    tmp_path_factory: pytest.TempPathFactory, family: str, settings: Mapping[str, Any], kind: TaskKind
) -> None:
    """Before it is simplified, too."""
    graphs = [made(tmp_path_factory, family, kind) for made in (exported, exported_plain)]
    check(graphs, config_of(family, settings))


@pytest.mark.parametrize("family", WITHOUT_GRAPH)
def test_a_family_without_a_graph_says_why(family: str) -> None:
    (families,) = (each for each in (ALL_ENCODERS, ALL_DECODERS, ALL_IMAGES) if family in each)
    kind: TaskKind = "image-classification" if families is ALL_IMAGES else "text-classification"
    kind = "language-modeling" if family in MIXTURES else kind
    with pytest.raises(NotExportableError, match=WITHOUT_GRAPH[family]):
        export_graph(config_of(family, families[family]), kind, image_of(kind))


_FALCONS: Mapping[str, Mapping[str, Any]] = {
    "40b": {"new_decoder_architecture": True, "num_kv_heads": 1},
    "a key for each head": {"multi_query": False, "parallel_attn": False},
    "biases": {"bias": True},
}
falcon_has_a_graph = pytest.mark.skipif("Falcon" in WITHOUT_GRAPH, reason="transformers computes its attention apart")


@pytest.mark.slow
@falcon_has_a_graph
@pytest.mark.parametrize("changes", _FALCONS.values(), ids=_FALCONS)
def test_falcons_of_all_kinds_have_graphs(changes: Mapping[str, Any]) -> None:
    changed("Falcon", changes, "language-modeling")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("Beit", {"use_relative_position_bias": True}, "a bias, of its own for each pair"),
        pytest.param("Falcon", {"alibi": True}, "a bias, of its own for each pair", marks=falcon_has_a_graph),
        ("Llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "torch.export: .*data-dependent"),
        (
            "Qwen2Moe",
            {"mlp_only_layers": [0, 1], "use_sliding_window": True, "max_window_layers": 2, "sliding_window": 8},
            "a local mask that its attention doesn't state",
        ),
        (
            "Phi3",
            {
                "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
                "original_max_position_embeddings": 32,
            },
            "made while the module runs",
        ),
    ],
)
def test_settings_that_leave_no_graph(
    family: str, changes: Mapping[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kind: TaskKind = "image-classification" if family in ALL_IMAGES else "language-modeling"
    settings = {**ALL_DECODERS, **ALL_IMAGES}[family]
    config = config_of(family, {**settings, **changes})
    capsys.readouterr()
    with pytest.raises(NotExportableError, match=reason):
        export_graph(config, kind, image_of(kind))
    assert capsys.readouterr() == ("", "")  # a command may print JSON


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("Mistral", {"sliding_window": 3}),
        ("Qwen2", {"tie_word_embeddings": True}),
        ("Gemma2", {"sliding_window": 3, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 7.0}),
        ("Gemma2", {"sliding_window": 3, "layer_types": ["full_attention"] * 2}),
        ("GPT2", {"activation_function": "relu", "scale_attn_by_inverse_layer_idx": True}),
        ("GPTNeoX", {"rotary_pct": 0.5, "use_parallel_residual": False}),
        ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "attention_bias": True, "mlp_bias": True}),
        ("Phi3", {"partial_rotary_factor": 0.5}),
        ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ],
)
def test_settings_that_change_what_is_computed(family: str, changes: Mapping[str, Any]) -> None:
    graph = changed(family, changes, "language-modeling")
    assert [each.name for each in graph.outputs] == ["logits", "hidden"]


@pytest.mark.slow
def test_a_local_attention_looks_both_ways() -> None:
    changes = {"local_attention": 4, "global_attn_every_n_layers": 2}
    graph = changed("ModernBert", changes, "text-classification")
    assert [node.attributes["window"] for node in graph.attentions] == [0, 3]


@pytest.mark.slow
def test_a_tied_bias_goes_by_its_first_name() -> None:
    graph = changed("Bert", {"is_decoder": True}, "language-modeling")
    assert "cls.predictions.decoder.bias" not in set(graph.parameters())
    assert {"cls.predictions.bias", "base_model.embeddings.word_embeddings.weight"} <= set(graph.parameters())


def _operators(graph: Graph) -> Counter[str]:
    return Counter(node.op for node in graph.nodes)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma"])
def test_decoders_are_fused(tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    graph = exported(tmp_path_factory, family, "language-modeling")
    found = _operators(graph)
    assert found.keys() <= {
        "embedding", "rms_norm", "add_rms_norm", "linear", "gated_linear", "reshape", "rotary", "attention", "multiply"
    }  # fmt: skip
    assert (found["gated_linear"], found["rotary"], found["add_rms_norm"]) == (2, 4, 4)
    assert all(node.attributes["layout"] == "bthd" for node in graph.nodes if node.op in ("attention", "rotary"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("Cohere", COHERE),  # doubles angles
        ("Glm", ALL_DECODERS["Glm"]),  # doubles cosines
        ("Glm", {**ALL_DECODERS["Glm"], "partial_rotary_factor": 1.0}),
    ],
)
def test_features_side_by_side_are_turned_by_one_operator(family: str, settings: Mapping[str, Any]) -> None:
    config = config_of(family, settings)
    graph = export_graph(config, "language-modeling")
    check([graph], config)
    assert [node.attributes["interleaved"] for node in graph.nodes if node.op == "rotary"] == [True] * 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings", "module", "other"),
    [
        ("Cohere", COHERE, modeling_cohere, modeling_llama),
        ("Llama", ALL_DECODERS["Llama"], modeling_llama, modeling_cohere),
    ],
)
def test_features_that_do_not_go_with_their_angles_are_not_fused(
    monkeypatch: pytest.MonkeyPatch, family: str, settings: Mapping[str, Any], module: ModuleType, other: ModuleType
) -> None:
    """Turned side by side by angles one row behind the other, or the other way round."""
    monkeypatch.setattr(module, "rotate_half", other.rotate_half)
    config = config_of(family, settings)
    graph = export_graph(config, "language-modeling")
    check([graph], config)
    assert not any(node.op == "rotary" for node in graph.nodes)


@pytest.mark.slow
def test_cosines_from_a_table_stay_as_they_are() -> None:
    sizes = {"vocab_size": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 8}
    config = config_of("GPTJ", {**sizes, "bos_token_id": 2, "eos_token_id": 3})
    graph = export_graph(config, "language-modeling")
    check([graph], config)
    assert not any(node.op == "rotary" for node in graph.nodes)


def test_encoders_are_fused(tmp_path_factory: pytest.TempPathFactory) -> None:
    graph = exported(tmp_path_factory, "Bert", "text-classification")
    found = _operators(graph)
    assert (found["add_layer_norm"], found["permute"], found["gelu"], found["cast"]) == (4, 0, 0, 0)
    assert [node.inputs[3].key for node in graph.attentions if node.inputs[3]] == ["attention_mask"] * 2


@pytest.mark.parametrize("family", ["GPT2", "Albert"])
def test_a_gelu_written_out_is_one(tmp_path_factory: pytest.TempPathFactory, family: str) -> None:
    graph = exported(tmp_path_factory, family, "language-modeling" if family == "GPT2" else "text-classification")
    assert sum(node.attributes.get("activation") == "gelu_tanh" for node in graph.nodes) == 2


@pytest.mark.slow
def test_passes_change_nothing_that_is_simple_already() -> None:
    form = CallForm.of("text-classification")
    config = config_of("Bert", ALL_ENCODERS["Bert"])
    once = simplified(draft_of(empty_module_of(config, form.kind, 997), form, 997))
    assert write_graph(simplified(once).graph) == write_graph(once.graph)
