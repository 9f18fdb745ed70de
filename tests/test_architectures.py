"""Architectures that nothing here knows by name: compiled, run, and equal to what they are exported as; marked slow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
)

import tiny
import weightpager as wp
from weightpager.backends.torch.export import export_task
from weightpager.bundle import Bundle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

_SIZES: Mapping[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_ENCODER = {**_SIZES, "vocab_size": 16, "intermediate_size": 64, "max_position_embeddings": 64}
_DECODER = {**_ENCODER, "num_key_value_heads": 1, "pad_token_id": 0}
_HEADS = {"head_dim": 16}
_IMAGES = {**_SIZES, "image_size": 16, "patch_size": 8, "intermediate_size": 64}
_DISTIL = {"vocab_size": 16, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64}
_DEBERTA = {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]}
_MODERN = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_OPT = {**_SIZES, "vocab_size": 16, "ffn_dim": 64, "max_position_embeddings": 64, "word_embed_proj_dim": 32}
_SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 32, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
_SEGFORMER = {
    "num_encoder_blocks": 2,
    "depths": [1, 1],
    "hidden_sizes": [16, 32],
    "num_attention_heads": [1, 2],
    "sr_ratios": [2, 1],
    "patch_sizes": [3, 3],
    "strides": [2, 2],
    "mlp_ratios": [2, 2],
}

ENCODERS = {
    "DistilBert": _DISTIL,
    "Electra": {**_ENCODER, "embedding_size": 16},
    "Albert": {**_ENCODER, "embedding_size": 16},
    "DebertaV2": {**_ENCODER, **_DEBERTA},
    "ModernBert": {**_ENCODER, **_MODERN},
}
DECODERS = {
    "GPT2": {"vocab_size": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "Falcon": {**_SIZES, "vocab_size": 16},
    "Mixtral": {**_DECODER, "num_local_experts": 2},
    "Gemma2": {**_DECODER, **_HEADS},
    "Qwen3": {**_DECODER, **_HEADS},
    "Phi3": _DECODER,
    "GPTNeoX": _ENCODER,
    "OPT": _OPT,
    "Olmo2": _DECODER,
}
IMAGES = {"DeiT": _IMAGES, "Beit": _IMAGES, "Dinov2": _IMAGES, "Swin": _SWIN, "Segformer": _SEGFORMER}


def built(family: str, config: Mapping[str, Any], suffix: str, folder: Path) -> PretrainedConfig:
    """Save a model of random weights; its configuration."""
    if not hasattr(transformers, f"{family}Config"):
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    torch.manual_seed(0)
    made: PretrainedConfig = getattr(transformers, f"{family}Config")(**config)
    name = {"GPT2ForCausalLM": "GPT2LMHeadModel"}.get(f"{family}{suffix}", f"{family}{suffix}")
    getattr(transformers, name)(made).save_pretrained(folder)
    return made


def check(content: dict[str, Any], auto: Any, inputs: dict[str, Any], folder: Path, tolerance: float = 1e-4) -> None:
    """Compile, and compare the first task with its exported model."""
    content["training"] = {"steps": 2, "batch": 8}
    wp.compile(content, out=folder / "a.bundle")
    bundle = Bundle.open(folder / "a.bundle")
    task = next(iter(bundle.tasks))
    exported = auto.from_pretrained(export_task(bundle, task, folder / "exported")).eval()
    with wp.Engine.from_pretrained(bundle.path) as engine, engine.task(task) as module, torch.inference_mode():
        found, expected = module(**inputs).logits, exported(**inputs).logits
    assert float(expected.norm()) > 0
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance / 10)
    with (
        wp.Engine.from_pretrained(bundle.path, dtype="bfloat16") as engine,
        engine.task(task) as module,
        torch.inference_mode(),
    ):
        assert module(**inputs).logits.isfinite().all()


TEXT = {"input_ids": torch.tensor([[2, 4, 9, 12, 7, 3]]), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family: str, tmp_path: Path) -> None:
    content = tiny.assistant(tmp_path)
    built(family, ENCODERS[family], "Model", Path(content["model"]))
    check(content, AutoModelForSequenceClassification, TEXT, tmp_path)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family: str, tmp_path: Path) -> None:
    content = tiny.writer(tmp_path)
    built(family, DECODERS[family], "ForCausalLM", Path(content["model"]))
    check(content, AutoModelForCausalLM, TEXT, tmp_path)


@pytest.mark.parametrize("family", DECODERS)
def test_decoders_whose_head_is_tied(family: str, tmp_path: Path) -> None:
    """Beside pages of few bits their tables are blocks, but for those that a family scales by itself."""
    content = tiny.writer(tmp_path, dtype="int8")
    built(family, {**DECODERS[family], "tie_word_embeddings": True}, "ForCausalLM", Path(content["model"]))
    check(content, AutoModelForCausalLM, TEXT, tmp_path, tolerance=1e-3)
    tied = Bundle.open(tmp_path / "a.bundle").manifest.tied_tables
    assert [table.dtype for table in tied] == ([] if family == "Gemma2" else ["int8"])


@pytest.mark.parametrize("family", IMAGES)
def test_models_of_images(family: str, tmp_path: Path) -> None:
    content = tiny.camera(tmp_path)
    built(family, IMAGES[family], "Model", Path(content["model"]))
    check(content, AutoModelForImageClassification, {"pixel_values": torch.randn(1, 3, 16, 16)}, tmp_path)
