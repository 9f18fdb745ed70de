"""A small Llama model in a GGUF file, as an ordinary Hugging Face directory.

Done here from the file's tensors, not by transformers' own reader: what that returns (packed or plain weights, which
tokenizer class) differs between versions, and the result lies in a cache that outlives them.
"""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager_lab.samples.sample import SampleUnavailable

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SPECIAL = 3  # GGUF's token type "control"


def convert(gguf: Path, directory: Path) -> None:
    """Writes configuration, tokenizer and weights (dequantised, bfloat16) of a GGUF file to ``directory``.

    Raises:
        SampleUnavailable: the package that reads GGUF files is not installed.
    """
    reader = _library().GGUFReader(gguf)
    fields = {
        name: field.contents() for name, field in reader.fields.items() if name.startswith(("llama.", "tokenizer."))
    }
    _write_json(directory / "config.json", config_of(fields))
    _write_tokenizer(fields, directory)
    _write_weights(reader, fields, directory / "model.safetensors")


def _library() -> Any:
    try:
        return import_module("gguf")
    except ImportError as error:
        raise SampleUnavailable(
            "SmolLM2 is distributed as a GGUF file, and the package that reads those is not installed: "
            f"pip install gguf ({error})"
        ) from error


def config_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The Hugging Face configuration that a GGUF file's fields describe."""
    heads, width = fields["llama.attention.head_count"], fields["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": width,
        "head_dim": width // heads,
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": fields["llama.rope.freq_base"],
        "vocab_size": fields["llama.vocab_size"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def tensor_name(name: str) -> str:
    """Hugging Face's name of a tensor: ``blk.3.attn_q.weight`` is ``model.layers.3.self_attn.q_proj.weight``."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.weight", name)
    if match is None or match[2] not in _TENSORS:
        raise SampleUnavailable(f"expected tensors of a Llama model without biases, got {name}")
    layer = f"model.layers.{match[1]}." if match[1] else ""
    return f"{layer}{_TENSORS[match[2]]}.weight"


def unpermute(weight: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undoes GGUF's order of the rows of a query or key projection, which pairs the two halves of each head."""
    rows, columns = weight.shape  # [heads * head width, input]
    pairs = weight.reshape(heads, rows // heads // 2, 2, columns)
    halves: npt.NDArray[np.float32] = pairs.swapaxes(1, 2).reshape(rows, columns)
    return halves


def _write_weights(reader: Any, fields: dict[str, Any], path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    tensors = {}
    for tensor in reader.tensors:
        weight = _library().dequantize(tensor.data, tensor.tensor_type)
        kind = tensor.name.split(".")[-2]
        if kind in heads:
            weight = unpermute(weight, heads[kind])
        tensors[tensor_name(tensor.name)] = torch.from_numpy(weight.copy()).to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    # What GGUF calls the "smollm" pre-tokenizer.
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    types = fields["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _SPECIAL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    settings = {ours: tokens[fields[f"tokenizer.ggml.{theirs}_token_id"]] for theirs, ours in names.items()}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings |= {"model_max_length": fields["llama.context_length"]}
    _write_json(directory / "tokenizer_config.json", {**settings, "chat_template": fields["tokenizer.chat_template"]})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
