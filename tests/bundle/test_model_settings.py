"""Settings that no honest model has: refused from the document alone, before anything is made of it."""

from __future__ import annotations

import dataclasses
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto

from weightpager.bundle.model_settings import MOST_DEPTH, foreign_code
from weightpager.bundle.settings import check_bounds, check_settings, generation_settings, parse
from weightpager.errors import BundleFormatError

BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "vocab_size": 30522,
    "layer_norm_eps": 1e-12,
    "torch_dtype": "float32",
    "_name_or_path": "google-bert/bert-base-uncased",
    "_attn_implementation_autoset": True,
    "task_specific_params": {"summarization": {"max_length": 200, "prefix": "summarize: "}},
    "id2label": {str(number): f"class {number}" for number in range(21_843)},
    "label2id": {f"auto_map {number}": number for number in range(21_843)},
}

# What takes memory is made where it is used.
LAYERS: list[dict[str, Any]] = [
    {"n_layers": 10**9},
    {"n_layer": 10**6},
    {"depths": [2, 10**9]},
    {"text_config": {"num_hidden_layers": 10**9}},
    {"vision_config": {"num_hidden_layers": 10**6}},
    {"vision_config": {"deeper": [{"depth": 10**6}]}},
    {"attention_types": [[["global", "local"], 10**9]]},
    {"attention_types": [[["global"], 600]]},
    {"num_hidden_groups": 10**6},
    {"num_feedforward_networks": 10**6},
    {"num_hash_functions": 10**6},
    {"num_local_experts": 10**6},
    {"head_dim": 2**28},
    {"hidden_size": 2**30},
    {"image_size": 8192},
    {"image_size": [8192, 16]},
    {"num_attention_heads": [[[2]] * 2000]},
    {"layer_types": ["full_attention"] * 2000},
    {"id2label": lambda: {str(number): "x" for number in range(10**6)}},
    {"label2id": lambda: {str(number): number for number in range(10**6)}},
    {"anything": lambda: {str(number): "x" for number in range(10**6)}},
    {"anything": lambda: [0] * 10**6},
    {"sinusoidal_pos_embds": True, "max_position_embeddings": 2**20},
]


MODEL_TYPES = sorted(
    set().union(
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
)


def refusal(name: str, values: Any) -> BundleFormatError:
    with pytest.raises(BundleFormatError) as error:
        check_settings(name, values)
    return error.value


@pytest.mark.parametrize("change", LAYERS, ids=lambda change: next(iter(change)))
def test_absurd_sizes_are_refused_under_any_name(change: dict[str, Any]) -> None:
    check_settings("model/config.json", BERT)
    made = {name: value() if callable(value) else value for name, value in change.items()}
    error = refusal("model/config.json", BERT | made)
    assert error.field.split(".")[0] in {*change, "max_position_embeddings"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"original_max_position_embeddings": {"a": 1}}, "original_max_position_embeddings"),
        ({"rope_scaling": {"type": "longrope", "original_max_position_embeddings": {}}}, "original_max"),
        ({"rope_scaling": "linear"}, "rope_scaling"),
        ({"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": "2"}}}, "full_attention.factor"),
        ({"rope_parameters": {"rope_type": 7}}, "rope_type"),
        ({"rope_scaling": {"short_factor": [1.0, 1.0], "long_factor": [1.0]}}, "rope_scaling"),
        ({"dtype": "load"}, "dtype"),
        ({"text_config": {"torch_dtype": "Tensor"}}, "text_config.torch_dtype"),
        ({"hidden_size": "768"}, "hidden_size"),
        ({"x": {"__float__": "NaN"}}, "x.__float__"),
        ({"sliding_window": [1]}, "sliding_window"),
        ({"sliding_window": -2}, "sliding_window"),
        ({"text_config": {"sliding_window": 1.5}}, "text_config.sliding_window"),
        ({"is_decoder": "x"}, "is_decoder"),
    ],
)
def test_values_that_a_forward_would_stumble_over_are_refused(change: dict[str, Any], field: str) -> None:
    assert field in str(refusal("model/config.json", BERT | change))


@pytest.mark.parametrize(
    "change",
    [
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1, "high_freq_factor": 4.0,
                          "original_max_position_embeddings": 8192}},
        {"rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10_000},
                             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000}}},
        {"rope_scaling": {"type": "longrope", "short_factor": [1] * 48, "long_factor": [1.1] * 48}},
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_theta": 1e7},
        {"max_position_embeddings": 10_485_760, "sliding_window": None, "pad_token_id": -1},
        {"time_step_limit": [0.0, {"__float__": "Infinity"}], "image_size": [224, 224]},
    ],
)  # fmt: skip
def test_what_honest_models_say_passes(change: dict[str, Any]) -> None:
    check_settings("model/config.json", BERT | change)
    assert foreign_code("model/config.json", BERT | change) is None


@pytest.mark.slow
def test_bounds_leave_room_around_what_every_class_of_transformers_has_by_default() -> None:
    for model_type in MODEL_TYPES:
        for field in dataclasses.fields(CONFIG_MAPPING[model_type]):
            given = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            if isinstance(given, int) and given > 0:
                check_bounds(model_type, {field.name: given if isinstance(given, bool) else 2 * given})
            elif isinstance(given, (list, tuple)):
                check_bounds(model_type, {field.name: list(given)})


@pytest.mark.parametrize(
    "change",
    [
        {"auto_map": {"AutoConfig": "evil.Evil"}},
        {"auto_map": {}},
        {"trust_remote_code": True},
        {"keypoint_detector_config": {"trust_remote_code": True, "_name_or_path": "evil/repo"}},
        {"keypoint_detector_config": {"_name_or_path": "evil/repo"}},
        {"parts": [{"auto_map": {"AutoModel": "evil/repo--evil.Evil"}}]},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": "evil/kernel"},
        {"attn_implementation": {"text_config": "evil/kernel"}},
        {"text_config": {"_attn_implementation": "flash_attention_2"}},
        {"experts_implementation": "evil/kernel"},
        {"_experts_implementation_internal": "evil/kernel"},
        {"some_implementation": "evil/kernel"},
        {"kernel_config": {"RMSNorm": "evil/kernel"}},
        {"backbone": "evil/repo"},
        {"timm_model": "evil"},
        {"weights_repo_id": "evil/repo"},
        {"configuration_files": ["config.4.0.0.json"]},
        {"vocab_file": "/etc/passwd"},
        {"fast_tokenizer_files": ["../tokenizer.9.0.0.json"]},
        {"quantization_config": {"quant_method": "evil"}},
        {"attribute_map": {"hidden_size": "x"}},
        {"__class__": "x"},
    ],
    ids=lambda change: json.dumps(change)[:50],
)
def test_code_kernels_models_and_files_from_elsewhere_are_found_at_any_depth(change: dict[str, Any]) -> None:
    found = foreign_code("model/config.json", BERT | change)
    assert found is not None
    assert found[0].path.split(".")[0] == next(iter(change))
    assert foreign_code("model/tokenizer_config.json", {"a": {"b": [[change]]}}) is not None


def test_settings_that_say_nothing_pass() -> None:
    nothing = {
        "attn_implementation": "sdpa",
        "backbone": None,
        "vocab_file": None,
        "use_kernels": False,
    }
    assert foreign_code("config.json", BERT | nothing | {"special_tokens_map_file": "/root/.cache/x.json"}) is None


def test_a_document_may_not_be_deeper_than_honest_ones() -> None:
    values: dict[str, Any] = {}
    for _ in range(MOST_DEPTH + 1):
        values = {"x": values}
    with pytest.raises(BundleFormatError, match="levels"):
        foreign_code("config.json", values)
    lists: Any = []
    for _ in range(500):
        lists = [lists]
    with pytest.raises(BundleFormatError, match="values"):
        foreign_code("config.json", {"x": lists})


@pytest.mark.parametrize(
    "change",
    [
        {"eos_token_id": {}},
        {"eos_token_id": []},
        {"eos_token_id": [1, "2"]},
        {"eos_token_id": True},
        {"pad_token_id": -1},
        {"pad_token_id": [1]},
        {"do_sample": "yes"},
        {"temperature": 0.0},
        {"temperature": "x"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": float("inf")},
    ],
)
def test_ways_to_go_on_that_generate_would_stumble_over_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BundleFormatError, match=next(iter(change))):
        generation_settings("model/generation_config.json", {"bos_token_id": 2, **change})


def test_floats_that_a_file_writes_as_integers_become_floats() -> None:
    stated = generation_settings("", {"temperature": 1, "repetition_penalty": 2, "eos_token_id": [3, 4]}).stated()
    assert stated == {"temperature": 1.0, "repetition_penalty": 2.0, "eos_token_id": [3, 4]}
    assert isinstance(stated["repetition_penalty"], float)  # transformers refuses an integer


VIT = {"image_processor_type": "ViTImageProcessor", "size": {"height": 16, "width": 16}, "image_mean": [0.5, 0.5, 0.5]}


@pytest.mark.parametrize(
    "change",
    [
        {"size": "x"},
        {"size": {"height": "16", "width": 16}},
        {"size": {"height": 0, "width": 16}},
        {"crop_size": {"depth": 3}},
        {"resample": "bicubic"},
        {"resample": 99},
        {"image_mean": {"r": 1}},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_std": [0.5] * 1000},
        {"rescale_factor": "1/255"},
        {"do_resize": "x"},
        {"do_center_crop": {"a": 1}},
        {"image_processor_type": "AutoModel"},
        {"data_format": "sideways"},
    ],
)
def test_settings_that_reading_an_image_would_stumble_over_are_refused(change: dict[str, Any]) -> None:
    check_settings("model/preprocessor_config.json", VIT | {"unknown": {"kept": [1, "2"]}})
    error = refusal("model/preprocessor_config.json", VIT | change)
    assert next(iter(change)) in str(error)
    assert "image_processor" not in change or refusal("model/processor_config.json", {"image_processor": VIT | change})


@pytest.mark.parametrize(
    "change",
    [
        {"model_max_length": "[UNK]"},
        {"model_max_length": 0},
        {"tokenizer_class": {"a": 1}},
        {"tokenizer_class": "os.system"},
        {"padding_side": "up"},
        {"pad_to_multiple_of": 2**60},
    ],
)
def test_settings_that_a_tokenizer_would_stumble_over_are_refused(change: dict[str, Any]) -> None:
    check_settings("model/tokenizer_config.json", {"model_max_length": int(1e30), "tokenizer_class": "BertTokenizer"})
    assert next(iter(change)) in str(refusal("model/tokenizer_config.json", change))


def doubled(times: int) -> dict[str, Any]:
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return {"type": "Sequence", "normalizers": [step] * times}


@pytest.mark.parametrize(
    "values",
    [
        {"normalizer": doubled(40)},
        {"decoder": {"type": "Sequence", "decoders": doubled(40)["normalizers"]}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 10_000}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "a" * 10_000}, "content": "b"}},
        {"normalizer": {"type": "Prepend", "prepend": "a" * 10_000}},
        {"padding": {"strategy": {"Fixed": 2**40}}},
        {"post_processor": {"single": [{"SpecialToken": {"id": "x"}}] * 5000}},
        {"post_processor": {"special_tokens": {"x": {"ids": [1] * 5000}}}},
    ],
    ids=lambda values: json.dumps(values)[:40],
)
def test_a_tokenizer_may_not_make_long_texts_of_short_ones(values: dict[str, Any]) -> None:
    check_settings("model/tokenizer.json", {"normalizer": doubled(3), "decoder": None, "model": {"vocab": {}}})
    assert next(iter(values)) in str(refusal("model/tokenizer.json", values))


KEYS = st.sampled_from(
    ["type", "ids", "pattern", "String", "Regex", "content", "prepend", "single", "special_tokens", "normalizers", "x"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["Replace", "Prepend", "Sequence", "a"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["normalizer", "decoder", "post_processor", "padding"]), ANYTHING)
@example("post_processor", {"special_tokens": {"[SEP]": {"ids": False}}})  # found by the fuzzer
def test_a_tokenizer_file_is_refused_or_taken_whatever_it_holds(field: str, value: Any) -> None:
    with suppress(BundleFormatError):
        check_settings("model/tokenizer.json", {field: value})


@pytest.mark.parametrize(
    "content", [b"[]", b"7", b'"x"', b'{"x": NaN}', b"[" * 100_000, b"\xff", b'{"x": 1' + b"0" * 5000]
)
def test_what_is_no_object_is_refused(content: bytes) -> None:
    with pytest.raises(BundleFormatError, match="content"):
        parse("model/config.json", content)
