"""A hostile model directory: nothing of it is run, built without bound, or ends in anything but our error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import GemmaConfig

import tiny_llava
import tiny_models as tiny
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model
from weightpager.compiler.model.directory import check_directory, load_generation
from weightpager.errors import CompileError

pytestmark = pytest.mark.usefixtures("no_network")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    """The same files, to be changed."""
    (tmp_path / "model").mkdir()
    for file in model.iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "model"


def edit(path: Path, change: dict[str, Any]) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(values | change))


@pytest.mark.parametrize(
    ("file", "change", "found"),
    [
        ("config.json", {"_attn_implementation_internal": "evil/kernel"}, "asks for a package's kernel"),
        ("config.json", {"attn_implementation": "evil/kernel"}, "asks for a package's kernel, or code from a hub"),
        (
            "config.json",
            {"x": {"trust_remote_code": True}},
            r"x.trust_remote_code asks to run the directory's own code",
        ),
        ("config.json", {"x": {"_name_or_path": "evil/repo"}}, "asks for another model"),
        ("config.json", {"model_type": "superglue"}, "save the part that reads texts or images"),
        ("config.json", {"num_hidden_groups": 10**9}, "num_hidden_groups"),
        ("config.json", {"get_text_config": 1}, "get_text_config"),
        ("config.json", {"quantization_config": {"quant_method": "evil"}}, "quantised"),
        ("tokenizer_config.json", {"tokenizer_file": "/etc/passwd"}, "asks to read a file of another name"),
        ("tokenizer_config.json", {"tokenizer_class": "AutoModel"}, "tokenizer_class"),
        ("tokenizer_config.json", {"model_max_length": []}, "model_max_length"),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil.Evil"}}, "auto_map asks to run"),
        ("preprocessor_config.json", {"image_processor_type": "AutoModel"}, "image_processor_type"),
        ("adapter_config.json", {"base_model_name_or_path": "evil/repo"}, "merge the adapter"),
    ],
)
def test_what_asks_for_more_is_refused(folder: Path, file: str, change: dict[str, Any], found: str) -> None:
    check_directory(folder)
    edit(folder / file, change)
    with pytest.raises(CompileError, match=found):
        check_directory(folder)


@pytest.mark.slow
def test_too_many_layers_are_not_built(folder: Path, tmp_path: Path) -> None:
    edit(folder / "config.json", {"num_hidden_layers": 512, "hidden_size": 2**17, "num_attention_heads": 2**12})
    edit(folder / "config.json", {"intermediate_size": 2**18, "vocab_size": 2**24})
    content = {"model": "model", "calibration": {"max_length": 8}, "tasks": tiny.tasks(tmp_path, "text")}
    with pytest.raises(CompileError, match="cannot be loaded"):
        dense_model.load(task_file.from_dict(content, tmp_path))


@pytest.mark.parametrize(
    "change", [{"eos_token_id": "x"}, {"temperature": -1.0, "do_sample": True}, {"top_p": 7.0, "do_sample": True}]
)
def test_how_to_go_on_is_refused_where_a_bundle_would_be(folder: Path, change: dict[str, Any]) -> None:
    edit(folder / "generation_config.json", {"bos_token_id": 2} | change)
    with pytest.raises(CompileError, match="cannot be loaded: "):
        load_generation(folder)


def test_minus_one_means_that_there_is_no_such_word(folder: Path) -> None:
    edit(folder / "generation_config.json", {"bos_token_id": 2, "eos_token_id": [3, 4], "pad_token_id": -1})
    assert load_generation(folder) == {"bos_token_id": 2, "eos_token_id": [3, 4]}


def test_a_model_of_parts_is_refused_with_a_way_out(folder: Path) -> None:
    edit(folder / "config.json", {"model_type": "llava_onevision", "text_config": GemmaConfig().to_dict()})
    with pytest.raises(CompileError, match="save the part that reads texts or images as a model of its own"):
        check_directory(folder)
    edit(folder / "config.json", {"model_type": "llava", "vision_config": {"model_type": "dinov2"}})
    with pytest.raises(
        CompileError, match="text_config.model_type: expected one of llama, mistral, qwen2, found 'gemma'"
    ):
        check_directory(folder)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return tiny_llava.watcher(tmp_path_factory.mktemp("llava"), pictures=False)


@pytest.mark.parametrize(
    ("file", "part", "change", "found"),
    [
        ("config.json", "vision_config", {"num_hidden_layers": 10**6}, "vision_config.num_hidden_layers"),
        ("config.json", "vision_config", {"image_size": 2**14}, "vision_config.image_size"),
        ("config.json", "vision_config", {"patch_size": 10**9}, "vision_config.patch_size"),
        ("config.json", "vision_config", {"patch_size": 0}, "vision_config.patch_size: expected .* 1 to 28, found 0"),
        ("config.json", "vision_config", {"patch_size": -14}, "vision_config.patch_size: expected .*, found -14"),
        ("config.json", "vision_config", {"patch_size": 29}, "vision_config.patch_size: expected .*, found 29"),
        ("config.json", "vision_config", {"patch_size": [14, 14]}, "vision_config.patch_size: expected .*, found .14"),
        ("config.json", "vision_config", {"image_size": 0}, "vision_config.image_size: expected .*, found 0"),
        ("config.json", "vision_config", {"hidden_size": 2**18, "num_attention_heads": 2**12}, "cannot be loaded"),
        ("config.json", "vision_config", {"num_channels": 4}, "patch_embedding.weight"),
        ("config.json", "text_config", {"vocab_size": 2**40}, "text_config.vocab_size"),
        ("config.json", "text_config", {"auto_map": {"AutoModel": "evil.Evil"}}, "text_config.auto_map asks to run"),
        ("config.json", "text_config", {"text_config": {"vocab_size": 5}}, "text_config.text_config: expected no"),
        ("config.json", "vision_config", {"more": {"_name_or_path": "evil/repo"}}, "asks for another model"),
        ("config.json", "", {"image_token_index": 10**6}, "image_token_index: expected a word of the tokenizer"),
        ("config.json", "", {"image_token_index": 0}, "image_token_index: expected a token for pictures alone, .*PAD"),
        ("config.json", "", {"vision_feature_layer": [2] * 500}, "multi_modal_projector.linear_1.weight"),
        ("config.json", "", {"vision_feature_select_strategy": "evil"}, "vision_feature_select_strategy"),
        ("preprocessor_config.json", "", {"crop_size": {"height": 14, "width": 14}}, "makes pixels .*28"),
        ("preprocessor_config.json", "", {"do_center_crop": False}, "pixels of one size of all pictures"),
    ],
)  # fmt: skip
def test_hostile_settings_of_a_model_that_reads_pictures_are_refused(
    llava: dict[str, Any], tmp_path: Path, file: str, part: str, change: dict[str, Any], found: str
) -> None:
    folder = Path(shutil.copytree(llava["model"], tmp_path / "llava"))
    values = json.loads((folder / file).read_text())
    (values[part] if part else values).update(change)
    (folder / file).write_text(json.dumps(values))
    with pytest.raises(CompileError, match=found):
        dense_model.load(task_file.from_dict(llava | {"model": str(folder)}))


def test_where_parts_came_from_is_passed_over(llava: dict[str, Any], tmp_path: Path) -> None:
    """Published directories state it; a bundle would be refused for it."""
    folder = Path(shutil.copytree(llava["model"], tmp_path / "llava"))
    values = json.loads((folder / "config.json").read_text())
    for part in ("vision_config", "text_config"):
        values[part]["_name_or_path"] = "evil/repo"
    (folder / "config.json").write_text(json.dumps(values))
    loaded = dense_model.load(task_file.from_dict(llava | {"model": str(folder)}))
    assert "evil" not in loaded.config.to_json_string()
