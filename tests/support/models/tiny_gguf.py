"""A tiny llama as a GGUF file, written by llama.cpp's own package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import tiny_pairs

_PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def write(out: Path, folder: Path, kind: str = "F32", settings: dict[str, Any] | None = None) -> LlamaForCausalLM:
    """Write a model whose matrices are stored as a type of GGUF's; the model, made in a folder.

    ``settings`` take the place of the file's own.
    """
    reads = tiny_pairs.tokenizer(tiny_pairs.by_level())
    path = tiny_pairs.llama(folder, own=reads, vocab_size=len(reads), eos_token_id=1, bos_token_id=0)
    model = LlamaForCausalLM.from_pretrained(path)
    writer = gguf.GGUFWriter(out, "llama")
    _settings(writer, model.config, reads, settings or {})
    for name, tensor in model.model.state_dict().items():
        values = tensor.float().numpy()
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            values = _interleaved(values, _heads(model.config, name))
        stored = gguf.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        if stored.name in ("F32", "F16"):
            writer.add_tensor(_named(name), values.astype(np.float16 if stored.name == "F16" else np.float32))
        else:
            writer.add_tensor(_named(name), gguf.quants.quantize(values, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _settings(writer: Any, config: Any, reads: PreTrainedTokenizerFast, own: dict[str, Any]) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(len(reads))
    words = reads.convert_ids_to_tokens(list(range(len(reads))))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(own.get("pre", "smollm"))
    writer.add_token_list(words)
    special = set(reads.all_special_tokens)
    writer.add_token_types([3 if word in special else 1 for word in words])
    merges = json.loads(reads.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    for name, number in (("bos", 0), ("eos", 1), ("unk", 2), ("pad", 3)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(tiny_pairs.TEMPLATE)
    if "split" in own:
        writer.add_uint16("split.count", own["split"])


def _named(name: str) -> str:
    if not name.startswith("layers."):
        return {"embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}[name]
    _, layer, part = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def _heads(config: Any, name: str) -> int:
    return int(config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)


def _interleaved(values: Any, heads: int) -> Any:
    """Rows of queries and keys as llama.cpp turns them: pairs that are turned together lie together."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
