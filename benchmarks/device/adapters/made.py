"""Random adapters of a decoder, as PEFT and as llama.cpp read them: times don't depend on their values."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from weightpager.bundle import Bundle
from weightpager.bundle.format.manifest import WeightEntry

Pairs = Mapping[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]
"""A and B by the weight's name without what an architecture calls its base."""

_GGUF = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
"""Parts of a llama's layer, as llama.cpp calls them."""


def made(bundle: Bundle, seed: int, rank: int, only: Sequence[str] = (), size: float = 0.02) -> Pairs:
    """An adapter of all paged weights, or of those whose names end so; values of B are about of this size."""
    rng = np.random.default_rng(seed)

    def pair(weight: WeightEntry) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        down = rng.standard_normal((rank, weight.in_features)) / weight.in_features**0.5
        return down.astype(np.float32), (size * rng.standard_normal((weight.out_features, rank))).astype(np.float32)

    weights = (weight for weight in bundle.manifest.weights if not only or weight.name.endswith(tuple(only)))
    return {weight.name.removeprefix("base_model."): pair(weight) for weight in weights}


def write_peft(pairs: Pairs, out: Path) -> Path:
    """Write a directory of PEFT's."""
    rank, arrays = len(next(iter(pairs.values()))[0]), {}
    for name, (down, up) in pairs.items():
        arrays[f"base_model.model.model.{name}.lora_A.weight"] = down
        arrays[f"base_model.model.model.{name}.lora_B.weight"] = up
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "bias": "none", "task_type": "CAUSAL_LM"}
    out.mkdir(parents=True)
    save_file(arrays, out / "adapter_model.safetensors", {"format": "pt"})
    (out / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    return out


def write_gguf(pairs: Pairs, out: Path) -> Path:
    """Write llama.cpp's file, in float16 as its converter does; rows of queries and keys stay where they are."""
    import gguf  # what the benchmark's user installs

    writer: Any = gguf.GGUFWriter(out, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(len(next(iter(pairs.values()))[0])))
    for name, pair in pairs.items():
        _, layer, part = name.split(".", 2)
        for side, values in zip("ab", pair, strict=True):
            writer.add_tensor(f"blk.{layer}.{_GGUF[part]}.weight.lora_{side}", values.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
