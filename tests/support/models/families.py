"""Tiny configurations of the architectures that docs/own-model.md names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import transformers
from packaging.version import Version
from transformers import PretrainedConfig

_SIZES: Mapping[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER: Mapping[str, Any] = {**_SIZES, "vocab_size": 16, "intermediate_size": 64, "max_position_embeddings": 64}
DECODER: Mapping[str, Any] = {**ENCODER, "num_key_value_heads": 1, "pad_token_id": 0}
_HEADS = {"head_dim": 16}
IMAGE: Mapping[str, Any] = {**_SIZES, "image_size": 16, "patch_size": 8, "intermediate_size": 64}
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

ENCODERS: Mapping[str, Mapping[str, Any]] = {
    "DistilBert": _DISTIL,
    "Electra": {**ENCODER, "embedding_size": 16},
    "Albert": {**ENCODER, "embedding_size": 16},
    "DebertaV2": {**ENCODER, **_DEBERTA},
    "ModernBert": {**ENCODER, **_MODERN},
}
DECODERS: Mapping[str, Mapping[str, Any]] = {
    "GPT2": {"vocab_size": 16, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
    "Falcon": {**_SIZES, "vocab_size": 16},
    "Gemma2": {**DECODER, **_HEADS},
    "Qwen3": {**DECODER, **_HEADS},
    "Phi3": DECODER,
    "GPTNeoX": ENCODER,
    "OPT": _OPT,
    "Olmo2": DECODER,
    "Glm": {**DECODER, **_HEADS},
    "Nemotron": DECODER,
}
_MIXTURE = {**DECODER, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "Mixtral": {**DECODER, "num_local_experts": 5, "num_experts_per_tok": 2},
    "Olmoe": {**DECODER, "num_experts": 6, "num_experts_per_tok": 3, "eos_token_id": 3},
    "Qwen2Moe": {**_MIXTURE, "shared_expert_intermediate_size": 40},
    "Qwen3Moe": {**_MIXTURE, **_HEADS, "norm_topk_prob": True},
}
"""Of experts: the families whose experts are paged."""

WITHOUT_GRAPH: Mapping[str, str] = {
    "DebertaV2": "the attention of DebertaV2",
    **({} if Version(transformers.__version__) >= Version("5.25") else {"Falcon": "the attention of Falcon"}),
    **dict.fromkeys(MIXTURES, "experts, which are chosen for each token while the module runs"),
    "Swin": "attention with a mask, or a bias, of its own",
}
"""Those that have no graph, and why."""

IMAGES: Mapping[str, Mapping[str, Any]] = {
    "DeiT": IMAGE,
    "Beit": IMAGE,
    "Dinov2": IMAGE,
    "Swin": _SWIN,
    "Segformer": _SEGFORMER,
}
"""Those that nothing here knows by name."""

ALL_ENCODERS = {"Bert": ENCODER, "Roberta": {**ENCODER, "max_position_embeddings": 66}, **ENCODERS}
ALL_DECODERS = {
    **dict.fromkeys(("Llama", "Mistral", "Qwen2", "Olmo"), DECODER),
    "Gemma": {**DECODER, **_HEADS},
    **DECODERS,
    **MIXTURES,
}
ALL_IMAGES = {"ViT": IMAGE, **IMAGES}
"""All."""

PIXELS = (3, 16, 16)
"""Of the models of images."""


def config_of(family: str, settings: Mapping[str, Any]) -> PretrainedConfig:
    """A configuration as a model's directory has it, with a token that pads."""
    made: PretrainedConfig = getattr(transformers, f"{family}Config")(**settings)
    made.architectures = [f"{family}Model"]
    if getattr(made, "pad_token_id", 0) is None:
        made.pad_token_id = 0
    return made
