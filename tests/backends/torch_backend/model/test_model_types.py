"""Which types of models are built: only those whose configuration makes nothing but itself."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import model_type_to_module_name

from weightpager.backends.torch.model_types import (
    LOADERS,
    allowed_class,
    builds_only_itself,
    check_config_class,
    check_tokenizer_class,
)
from weightpager.errors import BundleFormatError

FAMILIES = [
    "albert", "beit", "bert", "bloom", "clip_text_model", "convnext", "deberta", "deberta-v2", "deit", "dinov2",
    "dinov2_with_registers", "distilbert", "electra", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neo",
    "gpt_neox", "llama", "mistral", "mixtral", "modernbert", "mpnet", "olmo2", "opt", "phi", "phi3", "qwen2",
    "qwen2_moe", "qwen3", "roberta", "segformer", "smollm3", "swin", "t5", "vit", "xlm-roberta",
]  # fmt: skip

COMPOSED = ["detr", "encoder-decoder", "fuyu", "llava_onevision", "musicgen", "superglue", "timm_wrapper", "upernet"]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_families_that_work_are_built(model_type: str) -> None:
    assert allowed_class(model_type) is CONFIG_MAPPING[model_type]


@pytest.mark.parametrize("model_type", COMPOSED)
def test_what_makes_other_configurations_is_refused_with_a_way_out(model_type: str) -> None:
    with pytest.raises(BundleFormatError, match="model_type: expected .*save the part that reads texts or images"):
        check_config_class("model/config.json", {"model_type": model_type})


PARTS = {"vision_config": {"model_type": "clip_vision_model"}, "text_config": {"model_type": "llama"}}


def test_a_model_that_reads_pictures_is_made_of_parts_that_are_known() -> None:
    for vision in ("clip_vision_model", "siglip_vision_model", "dinov2"):
        for text in ("llama", "mistral", "qwen2"):
            parts = {"vision_config": {"model_type": vision}, "text_config": {"model_type": text}}
            check_config_class("config.json", {"model_type": "llava", **parts})
            check_config_class("config.json", {"model_type": "llava_next", **parts})


@pytest.mark.parametrize("model_type", ["idefics3", "smolvlm"])
def test_a_tower_of_tiles_has_one_class(model_type: str) -> None:
    words: dict[str, Any] = {"model_type": "llama", "perceiver_config": {"model_type": "vllama3"}}
    for tower in ({}, {"model_type": model_type}, {"model_type": f"{model_type}_vision"}):
        check_config_class("config.json", {"model_type": model_type, "vision_config": tower, "text_config": words})
    for part, values, expected in (
        ("vision_config", {"model_type": "clip_vision_model"}, "vision_config.model_type: expected one of"),
        (
            "text_config",
            {"hidden_size": 8},
            "text_config.model_type: expected one of llama, mistral, qwen2, found None",
        ),
        ("text_config", words | {"text_config": {}}, "text_config.text_config: expected no model inside a llama"),
        ("text_config", words | {"my_config": {}}, "text_config.my_config: expected no model inside a llama"),
    ):
        parts: dict[str, Any] = {"vision_config": {}, "text_config": words, part: values}
        with pytest.raises(BundleFormatError, match=expected):
            check_config_class("config.json", {"model_type": model_type, **parts})


@pytest.mark.parametrize(
    ("part", "values", "expected"),
    [
        (
            "vision_config",
            {"model_type": "timm_wrapper"},
            "vision_config.model_type: expected one of clip_vision_model, ",
        ),
        ("vision_config", {"model_type": "pixtral"}, "vision_config.model_type: expected one of"),
        ("vision_config", {"model_type": "llava"}, "vision_config.model_type: expected one of"),
        ("vision_config", {"model_type": ["clip_vision_model"]}, "vision_config.model_type: expected one of"),
        ("vision_config", {}, "vision_config.model_type: expected one of .*found None"),
        ("vision_config", None, "vision_config.model_type: expected one of .*found None"),
        ("vision_config", [1], "vision_config.model_type: expected one of .*found None"),
        ("text_config", {"model_type": "rwkv"}, "text_config.model_type: expected one of llama, mistral, qwen2"),
        ("text_config", {"model_type": "llama", "to_dict": 1}, "text_config.to_dict: expected no setting of that name"),
        ("vision_config", {"model_type": "dinov2", "from_dict": {}}, "vision_config.from_dict: expected no setting"),
    ],
)
def test_foreign_parts_of_a_model_are_refused_by_name(part: str, values: Any, expected: str) -> None:
    with pytest.raises(BundleFormatError, match=expected):
        check_config_class("config.json", {"model_type": "llava", **PARTS, part: values})


@pytest.mark.parametrize("model_type", [None, 7, [], {"a": 1}, "", "nonsense", "../bert"])
def test_what_transformers_does_not_know_is_refused(model_type: Any) -> None:
    with pytest.raises(BundleFormatError, match=f"a type that transformers {transformers.__version__} knows"):
        check_config_class("model/config.json", {"model_type": model_type})


class ByCode(PretrainedConfig):
    model_type = "by-code"

    def __post_init__(self, **more: Any) -> None:
        self.inner = [(lambda: AutoConfig.for_model(kind))() for kind in more.pop("kinds", ())]
        super().__post_init__(**more)


class ByPart(PretrainedConfig):
    model_type = "by-part"
    sub_configs = {"inner": ByCode}  # noqa: RUF012 - as transformers has it


class ByName(PretrainedConfig):
    model_type = "by-name"
    sub_configs = {"inner": AutoConfig}  # noqa: RUF012


@pytest.mark.parametrize("config_class", [ByCode, ByPart, ByName])
def test_a_class_is_known_by_its_code_and_its_parts(config_class: type[PretrainedConfig]) -> None:
    assert not builds_only_itself(config_class)


@pytest.mark.parametrize("name", ["to_dict", "get_text_config", "from_dict", "__init__", "name", "validate_token_ids"])
def test_a_setting_takes_no_part_of_its_class_away(name: str) -> None:
    values = {"model_type": "bert", "name": "x", "hidden_size": 3, "num_labels": 2, "keys_to_ignore_at_inference": []}
    check_config_class("model/config.json", values)
    if name != "name":
        with pytest.raises(BundleFormatError, match=f"{name}: expected no setting of that name"):
            check_config_class("model/config.json", values | {name: 3})


@pytest.mark.parametrize("name", ["AutoModel", "BertModel", "pipeline", "Trainer", 7, ["BertTokenizer"]])
def test_a_tokenizers_class_is_a_tokenizers(name: Any) -> None:
    for good in ("BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "SomebodysTokenizer", None):
        check_tokenizer_class("model/tokenizer_config.json", {"tokenizer_class": good})
    with pytest.raises(BundleFormatError, match="tokenizer_class"):
        check_tokenizer_class("model/tokenizer_config.json", {"tokenizer_class": name})


@pytest.mark.slow
def test_types_whose_modules_load_code_of_their_own_accord_are_all_known() -> None:
    folder = Path(transformers.__file__).parent / "models"
    kinds = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    )
    loads = re.compile(r"\bget_kernel\(|\bcreate_timm|torch\.hub|import_module\(|load_backbone\(|import detectron2")
    found = set()
    for model_type in sorted(set().union(*kinds)):
        module = model_type_to_module_name(model_type)
        file = folder / module / f"modeling_{module}.py"
        if file.is_file() and loads.search(file.read_text(encoding="utf-8")):
            found.add(model_type)
    assert {kind for kind in found if allowed_class(kind) is not None} == set()
    assert found <= LOADERS | {kind for kind in found if not builds_only_itself(CONFIG_MAPPING[kind])}


def test_what_is_refused_can_be_told_apart(tmp_path: Path) -> None:
    """A part that names a repository and trusts it (CVE-2026-5241) is never looked for: its class isn't built."""
    part = {"trust_remote_code": True, "_name_or_path": str(tmp_path / "evil"), "model_type": "superpoint"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "superglue", "keypoint_detector_config": part}))
    with pytest.raises(BundleFormatError, match="model_type"):
        check_config_class("config.json", json.loads((tmp_path / "config.json").read_text()))
