"""The dense model: shared parameters, canonical names, what is paged, what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    BertForSequenceClassification,
    BertLMHeadModel,
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    FlexOlmoConfig,
    FlexOlmoForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    RobertaConfig,
    RobertaModel,
    T5Config,
)
from transformers.models.t5 import T5ForConditionalGeneration

import tiny_models as tiny
from weightpager.compiler import task_file
from weightpager.compiler.model import dense_model, paged_weights
from weightpager.compiler.model.checkpoint import check_base
from weightpager.compiler.model.dense_model import DenseModel
from weightpager.errors import CompileError

PER_LAYER = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]


pytestmark = pytest.mark.usefixtures("no_network")


def load(folder: Path, tasks: dict[str, Any], **more: Any) -> DenseModel:
    content = {"model": "model", "calibration": {"max_length": 8}, "tasks": tasks, **more}
    return dense_model.load(task_file.from_dict(content, folder))


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_an_encoder_for_two_kinds(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, tiny.tasks(tmp_path, "text", "tokens"))
    assert found.classes("text") == ("bad", "good")
    assert found.classes("tokens") == ("ADJ", "DET", "NOUN")
    assert found.models["text"].config.num_labels == 2
    layers = [f"base_model.encoder.layer.{n}.{part}" for n in (0, 1) for part in PER_LAYER]
    layers[4:4] = [f"base_model.encoder.layer.0.{part}.dense" for part in ("intermediate", "output")]
    layers += [f"base_model.encoder.layer.1.{part}.dense" for part in ("intermediate", "output")]
    assert [info.name for info in found.paged] == layers
    assert [info.layer for info in found.paged] == [0] * 6 + [1] * 6
    grid = found.paged[4].grid
    assert (grid.out_features, grid.in_features, grid.rows, grid.cols) == (96, 64, 6, 2)
    assert found.linear("tokens", layers[4]).weight is found.linear("text", layers[4]).weight
    assert found.resident == {
        "base_model.embeddings.word_embeddings.weight": "embedding",
        "base_model.embeddings.position_embeddings.weight": "embedding",
        "base_model.embeddings.token_type_embeddings.weight": "embedding",
        "base_model.pooler.dense.weight": "pooler",
        "classifier.weight": "head",
    }


def test_everything_in_the_base_is_shared(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    found = load(tmp_path, tiny.tasks(tmp_path, "text", "tokens"))
    text, tokens = found.parameters("text"), found.parameters("tokens")
    assert set(text) - set(tokens) == {"base_model.pooler.dense.weight", "base_model.pooler.dense.bias"}
    for name, tensor in tokens.items():
        assert (tensor is text[name]) == name.startswith("base_model."), name
    batch = {"input_ids": torch.tensor([[2, 4, 3]])}
    before = found.models["tokens"](**batch).logits
    with torch.no_grad():
        found.linear("text", found.paged[0].name).weight.zero_()
    assert not torch.equal(found.models["tokens"](**batch).logits, before)


def test_a_decoder_with_tied_embeddings(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model")
    entries = tiny.tasks(tmp_path, "lm", "text")
    found = load(tmp_path, entries | {"lm2": entries["lm"]})
    assert [info.layer for info in found.paged] == [n for n in range(3) for _ in range(7)]
    key = next(info for info in found.paged if info.name == "base_model.layers.0.self_attn.k_proj")
    assert (key.grid.out_features, key.grid.in_features) == (32, 64)
    lm = found.parameters("lm")
    assert "lm_head.weight" not in lm
    assert found.models["lm"].lm_head.weight is found.models["lm2"].model.embed_tokens.weight
    assert found.models["lm"].lm_head.weight is found.models["text"].model.embed_tokens.weight
    assert found.resident["base_model.embed_tokens.weight"] == "embedding, tied to lm_head.weight"
    assert found.resident["score.weight"] == "head"
    assert found.classes("lm") == ()
    assert found.tokenizer.pad_token == "[SEP]"
    assert found.config.pad_token_id == found.models["text"].config.pad_token_id == 3


def test_an_untied_head_is_shared_by_language_models(tmp_path: Path) -> None:
    tiny.llama(tmp_path / "model", tie_word_embeddings=False)
    entries = tiny.tasks(tmp_path, "lm")
    found = load(tmp_path, entries | {"lm2": entries["lm"]})
    assert found.parameters("lm")["lm_head.weight"] is found.parameters("lm2")["lm_head.weight"]
    assert found.resident["lm_head.weight"] == "head"


def test_modules_are_ordinary_and_untouched(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    model = load(tmp_path, tiny.tasks(tmp_path, "text")).models["text"]
    assert type(model) is BertForSequenceClassification
    assert not any(module.training for module in model.modules())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_becomes_float32(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    halves = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    edit_json(folder / "config.json", torch_dtype="bfloat16", dtype="bfloat16")
    found = load(tmp_path, tiny.tasks(tmp_path, "lm"))
    assert {tensor.dtype for tensor in found.parameters("lm").values()} == {torch.float32}


def test_new_heads_follow_the_seed_and_leave_the_generator_alone(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    entries = tiny.tasks(tmp_path, "text")
    state = torch.get_rng_state()
    first, again = (load(tmp_path, entries).parameters("text")["classifier.weight"] for _ in range(2))
    other = load(tmp_path, entries, training={"seed": 1}).parameters("text")["classifier.weight"]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_head_brings_its_classes(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    names = {0: "good", 1: "so so", 2: "bad"}
    tiny.bert(tmp_path / "head", BertForSequenceClassification, seed=1, id2label=names)
    entries = tiny.tasks(tmp_path, "text")
    entries["text"]["head"] = "head"
    found = load(tmp_path, entries)
    assert found.classes("text") == ("good", "so so", "bad")
    wanted = load_file(tmp_path / "head" / "model.safetensors")["classifier.weight"]
    assert torch.equal(found.parameters("text")["classifier.weight"], wanted)


def test_the_head_of_the_model_itself_keeps_the_order_of_the_same_classes(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model", BertForSequenceClassification, id2label={0: "good", 1: "bad"})
    found = load(tmp_path, tiny.tasks(tmp_path, "text"))
    assert found.brings_head("text")
    assert found.classes("text") == ("good", "bad")
    wanted = load_file(folder / "model.safetensors")["classifier.weight"]
    assert torch.equal(found.parameters("text")["classifier.weight"], wanted)
    tiny.bert(tmp_path / "model", BertForSequenceClassification, id2label={0: "spam", 1: "ham"})
    found = load(tmp_path, tiny.tasks(tmp_path, "text"))
    assert found.classes("text") == ("bad", "good")
    assert not found.brings_head("text")


def test_a_head_on_another_base_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.bert(tmp_path / "model")
    entries = tiny.tasks(tmp_path, "text")
    for name, seed, warned in (("same", 0, False), ("other", 1, True)):
        tiny.bert(tmp_path / name, BertForSequenceClassification, seed=seed)
        entries["text"]["head"] = name
        caplog.clear()
        load(tmp_path, entries)
        assert ("other base weights" in caplog.text) == warned


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda path: tiny.bert(path), "expected the weight 'classifier.bias', the checkpoint has none"),
        (lambda path: tiny.llama(path), "expected a head for bert, found one for llama"),
        (
            lambda path: tiny.bert(path, BertForSequenceClassification, id2label={0: "same", 1: "same"}),
            "expected two or more different classes, found same, same",
        ),
        (
            lambda path: tiny.bert(path, BertForSequenceClassification, hidden_size=32),
            r"expected '.*' of shape \[14, 64\], found \[14, 32\]",
        ),
    ],
)
def test_refuses_a_head_that_does_not_fit(tmp_path: Path, make: Any, expected: str) -> None:
    tiny.bert(tmp_path / "model")
    make(tmp_path / "head")
    entries = tiny.tasks(tmp_path, "text")
    entries["text"]["head"] = "head"
    with pytest.raises(CompileError, match=expected):
        load(tmp_path, entries)


def test_refuses_remote_code(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(CompileError, match=r"config\.json: auto_map asks to run"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_what_a_later_transformers_wrote(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", transformers_version="1000.0.0")
    with pytest.raises(CompileError, match=r"reads, found one that 1000.0.0 wrote; update transformers"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_a_tokenizer_that_panics(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    single = [{"SpecialToken": {"id": "gone", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    known = {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]}}
    template = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": known}
    edit_json(tmp_path / "model" / "tokenizer.json", post_processor=template)
    with pytest.raises(CompileError, match="cannot be loaded"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_remote_tokenizers(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    edit_json(tmp_path / "model" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["a.B", None]})
    with pytest.raises(CompileError, match=r"tokenizer_config\.json: auto_map asks to run"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_an_encoder_decoder(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": len(tiny.WORDS)}
    tiny.save(T5ForConditionalGeneration(T5Config(**sizes)), tmp_path / "model")
    with pytest.raises(CompileError, match="found the encoder-decoder t5"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(tmp_path: Path, value: float) -> None:
    folder = tiny.bert(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.weight"][3, 4] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CompileError, match=r"NaN or infinity in 'base_model\.encoder\.layer\.1\.output\.dense\.weight'"
    ):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_a_broken_decoder_is_called_broken(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompileError, match="expected finite weights"):
        load(tmp_path, tiny.tasks(tmp_path, "lm"))


def test_refuses_a_checkpoint_with_holes(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CompileError, match=r"expected the weight 'base_model\.encoder\.layer\.1\.output\.dense\.weight'"
    ):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_a_missing_pooler_is_trained(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, folder / "model.safetensors", {"format": "pt"})
    assert "base_model.pooler.dense.weight" in load(tmp_path, tiny.tasks(tmp_path, "text")).parameters("text")


def test_refuses_a_model_without_linear_layers(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    models = {"photo": ResNetForImageClassification(config)}
    with pytest.raises(CompileError, match=r"expected a linear layer to page, found none.*Conv2d, not a plain linear"):
        paged_weights.sort_weights(models, task_file.TaskFile.model_fields["block"].default, tmp_path)


SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_experts_of_a_family_that_is_not_known_stay_resident_and_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = FlexOlmoConfig(
        **SIZES, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, vocab_size=16, pad_token_id=0
    )
    tiny.save(FlexOlmoForCausalLM(config), tmp_path / "model", special=False)
    found = load(tmp_path, tiny.tasks(tmp_path, "lm"))
    name = "base_model.layers.0.mlp.experts.gate_up_proj"
    assert found.resident[name] == "experts in one tensor (FlexOlmoExperts) of a family that isn't known"
    (said,) = (message for message in caplog.messages if "paged is" in message)
    assert re.search(r"paged is 1\d\.\d% of the parameters, less than half: .*: 8\d\.\d% experts in one tensor", said)


def test_experts_are_paged_and_their_router_is_not(tmp_path: Path) -> None:
    config = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, vocab_size=len(tiny.WORDS))
    tiny.save(MixtralForCausalLM(config), tmp_path / "model", special=False)
    found = load(tmp_path, tiny.tasks(tmp_path, "lm"))
    names = [info.name for info in found.paged if info.layer == 1 and ".experts." in info.name]
    wanted = [f"{expert}.{each}_proj" for expert in range(4) for each in ("gate", "up", "down")]
    assert names == [f"base_model.layers.1.mlp.experts.{name}" for name in wanted]
    assert found.resident["base_model.layers.0.mlp.gate.weight"] == "router"


def two_encoders() -> CLIPConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = sizes | {"vocab_size": len(tiny.WORDS), "bos_token_id": 2, "eos_token_id": 3}
    return CLIPConfig(text_config=text, vision_config=sizes | {"image_size": 16, "patch_size": 8})


@pytest.mark.parametrize("kind", ["text", "lm"])
def test_refuses_two_encoders_side_by_side(kind: str, tmp_path: Path) -> None:
    tiny.save(CLIPModel(two_encoders()), tmp_path / "model")
    wanted = "a head for (text-classification|language-modeling), found clip, for which transformers has none; "
    with pytest.raises(CompileError, match=wanted + r"it has one for image-classification\. It is a text and a vision"):
        load(tmp_path, tiny.tasks(tmp_path, kind))


def test_refuses_a_head_without_a_base_of_its_own() -> None:
    with pytest.raises(CompileError, match=r"over one base model.* found CLIPForImageClassification, .*side by side"):
        check_base(CLIPForImageClassification(two_encoders()), Path("clip"))


def test_refuses_a_language_model_that_sees_the_future(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model", BertLMHeadModel)
    with pytest.raises(CompileError, match="looks at later tokens"):
        load(tmp_path, tiny.tasks(tmp_path, "lm"))


def test_an_encoder_for_language_modeling_is_told_what_is_needed(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    with pytest.raises(CompileError, match="language-modeling needs a decoder that was saved with its head"):
        load(tmp_path, tiny.tasks(tmp_path, "lm"))


def test_refuses_a_language_model_without_a_head(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompileError, match=r"expected the weight 'lm_head\.weight'"):
        load(tmp_path, tiny.tasks(tmp_path, "lm"))


def test_refuses_texts_longer_than_the_model(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    entries = tiny.tasks(tmp_path, "text")
    entries["text"]["max_length"] = 65
    with pytest.raises(CompileError, match=r"tasks\.text\.max_length: expected at most the 64 tokens"):
        load(tmp_path, entries)


@pytest.mark.parametrize(
    "values", [{"hidden_size": "x"}, {"hidden_size": None}, {"num_attention_heads": 0}, {"id2label": ["a", "b"]}]
)
def test_refuses_settings_of_the_wrong_type(tmp_path: Path, values: dict[str, Any]) -> None:
    edit_json(tiny.bert(tmp_path / "model") / "config.json", **values)
    with pytest.raises(CompileError, match="cannot be loaded"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_broken_directories(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model")
    parsed = task_file.from_dict({"model": "model", "tasks": tiny.tasks(tmp_path, "text")}, tmp_path)
    (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(CompileError, match="cannot be loaded"):
        dense_model.load(parsed)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CompileError, match="cannot be loaded"):
        dense_model.load(parsed)
    (folder / "config.json").write_text("[")
    with pytest.raises(CompileError, match="cannot be loaded"):
        dense_model.load(parsed)
    (folder / "config.json").unlink()
    with pytest.raises(CompileError, match=r"found no config\.json"):
        dense_model.load(parsed)


def test_linear_layers_below_a_block_stay_resident(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model", intermediate_size=8)
    found = load(tmp_path, tiny.tasks(tmp_path, "text"))
    assert found.resident["base_model.encoder.layer.0.intermediate.dense.weight"] == "smaller than a block of 16x32"
    assert len(found.paged) == 8


def test_a_weight_used_twice_stays_resident(tmp_path: Path) -> None:
    tiny.bert(tmp_path / "model")
    model = load(tmp_path, tiny.tasks(tmp_path, "text")).models["text"]
    first, second = (model.bert.encoder.layer[n].output.dense for n in (0, 1))
    second.weight = first.weight
    reasons = paged_weights.why_resident(model, task_file.TaskFile.model_fields["block"].default)
    name = "base_model.encoder.layer.{}.output.dense.weight"
    assert reasons[name.format(0)] == "tied to " + name.format(1)
    assert name.format(1) not in dense_model.parameters(model)


def test_a_subclass_of_linear_that_computes_something_else_stays_resident(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return -super().forward(x)

    tiny.bert(tmp_path / "model")
    model = load(tmp_path, tiny.tasks(tmp_path, "text")).models["text"]
    model.bert.encoder.layer[0].output.dense = Odd(96, 64)
    reasons = paged_weights.why_resident(model, task_file.TaskFile.model_fields["block"].default)
    assert reasons["base_model.encoder.layer.0.output.dense.weight"] == "Odd, not a plain linear layer"


@pytest.mark.parametrize("make", [tiny.bert, tiny.llama])
def test_refuses_a_model_without_a_tokenizer(tmp_path: Path, make: Any) -> None:
    for file in make(tmp_path / "model").glob("*token*"):
        file.unlink()
    with pytest.raises(CompileError, match=r"expected a tokenizer, found none of tokenizer\.json, .*save_pretrained"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_refuses_padding_that_the_model_does_not_know(tmp_path: Path) -> None:
    folder = tiny.llama(tmp_path / "model")
    words = tiny.tokenizer(special=False)
    words.add_special_tokens({"pad_token": "<pad>"})
    words.save_pretrained(folder)
    with pytest.raises(CompileError, match=r"with ids below 14, found '<pad>', 14; give the model as many"):
        load(tmp_path, tiny.tasks(tmp_path, "text"))


def test_settings_of_outputs_are_set_back(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "model")
    edit_json(folder / "config.json", chunk_size_feed_forward=4, output_attentions=True, return_dict=False)
    found = load(tmp_path, tiny.tasks(tmp_path, "text"))
    for config in (found.config, found.models["text"].config):
        assert (config.chunk_size_feed_forward, config.output_attentions) == (0, False)
        assert config.return_dict
    assert found.models["text"](input_ids=torch.tensor([[2, 4, 3]])).logits.shape == (1, 2)


def test_positions_stay_where_the_tokenizer_pads_with_another_word(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=len(tiny.WORDS), max_position_embeddings=16, pad_token_id=1)
    model = RobertaModel(config).eval()
    tiny.save(model, tmp_path / "model")  # whose tokenizer pads with 0
    found = load(tmp_path, tiny.tasks(tmp_path, "text"))
    ids = torch.tensor([[2, 9, 10, 3]])
    with torch.inference_mode():
        ours = found.models["text"].base_model(ids, torch.ones_like(ids)).last_hidden_state
        torch.testing.assert_close(ours, model(ids, torch.ones_like(ids)).last_hidden_state)


def test_positions_behind_the_padding_are_fewer(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = RobertaConfig(**sizes, vocab_size=len(tiny.WORDS), max_position_embeddings=12, pad_token_id=0)
    tiny.save(RobertaModel(config), tmp_path / "model")
    entries = tiny.tasks(tmp_path, "text")
    entries["text"]["max_length"] = 11
    load(tmp_path, entries)
    entries["text"]["max_length"] = 12
    with pytest.raises(
        CompileError, match=r"tasks\.text\.max_length: expected at most the model's 11 tokens, found 12"
    ):
        load(tmp_path, entries)
