"""What every axis of an architecture's tensors runs over: a table per family."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from weightpager.backends.torch.model.architecture import BASE

Along = Literal["", "residual", "neurons", "query", "key", "value", "mixed", "channels"]
"""What an axis runs over. With K key/value heads, G query heads to each and D channels to a head: ``query`` and
``mixed`` (the values that queries have mixed) run over [K, G, D], ``key`` and ``value`` over [K, D], ``channels`` over
[D]. Channels of queries and keys stay in place: rotary positions and norms tell them apart."""

Axes = tuple[Along, ...]

RESIDUAL = "residual"
"""The dimension that all layers read and write."""

Family = Mapping[str, Axes]
"""Tensor name, layer numbers written ``#``, to what each axis runs over."""


def _linear(name: str, out: Along, into: Along) -> dict[str, Axes]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str) -> dict[str, Axes]:
    return {f"{name}.weight": ("residual",), f"{name}.bias": ("residual",)}


def _layers(prefix: str, attention: tuple[str, str, str, str], mlp: tuple[list[str], str], norms: list[str]) -> Family:
    """The rows of a family's repeated layers, all names inside ``prefix``."""
    rows: dict[str, Axes] = {}
    rows |= _linear(prefix + attention[0], "query", "residual")
    rows |= _linear(prefix + attention[1], "key", "residual")
    rows |= _linear(prefix + attention[2], "value", "residual")
    rows |= _linear(prefix + attention[3], "residual", "mixed")
    for name in mlp[0]:
        rows |= _linear(prefix + name, "neurons", "residual")
    rows |= _linear(prefix + mlp[1], "residual", "neurons")
    for name in norms:
        rows |= _norm(prefix + name)
    return rows


_EMBEDDING: Axes = ("", "residual")

_BERT: Family = {
    **{f"{BASE}embeddings.{name}_embeddings.weight": _EMBEDDING for name in ("word", "position", "token_type")},
    **_norm(f"{BASE}embeddings.LayerNorm"),
    **_layers(
        f"{BASE}encoder.layer.#.",
        ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
        (["intermediate.dense"], "output.dense"),
        ["attention.output.LayerNorm", "output.LayerNorm"],
    ),
    **_linear(f"{BASE}pooler.dense", "", "residual"),
    **_linear("classifier", "", "residual"),
    **_linear("classifier.dense", "", "residual"),  # RoBERTa's head
    **_linear("classifier.out_proj", "", ""),
}

_POOLED: Family = _linear("classifier", "", "")
"""Where there is a pooler, the classifier reads its outputs, which stay in place."""

_LLAMA: Family = {
    f"{BASE}embed_tokens.weight": _EMBEDDING,
    **_layers(
        f"{BASE}layers.#.",
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
        (["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        ["input_layernorm", "post_attention_layernorm"],
    ),
    f"{BASE}layers.#.self_attn.q_norm.weight": ("channels",),
    f"{BASE}layers.#.self_attn.k_norm.weight": ("channels",),
    **_norm(f"{BASE}norm"),
    **_linear("lm_head", "", "residual"),
    **_linear("score", "", "residual"),
}

_VIT: Family = {
    f"{BASE}embeddings.cls_token": ("", "", "residual"),
    f"{BASE}embeddings.position_embeddings": ("", "", "residual"),
    f"{BASE}embeddings.patch_embeddings.projection.weight": ("residual", "", "", ""),
    f"{BASE}embeddings.patch_embeddings.projection.bias": ("residual",),
    **_norm(f"{BASE}layernorm"),
    **_linear(f"{BASE}pooler.dense", "", "residual"),
    **_linear("classifier", "", "residual"),
    **_layers(
        f"{BASE}layers.#.",
        ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        (["mlp.fc1"], "mlp.fc2"),
        ["layernorm_before", "layernorm_after"],
    ),
}


def _decoder(attention: tuple[str, str], mlp: tuple[str, str], norms: list[str], tables: list[str]) -> Family:
    """A decoder whose queries, keys and values come out of one linear layer: those stay in place."""
    layer = f"{BASE}h.#."
    return {
        **{f"{BASE}{name}.weight": _EMBEDDING for name in tables},
        **_linear(layer + attention[0], "", "residual"),
        **_linear(layer + attention[1], "residual", ""),
        **_linear(layer + mlp[0], "neurons", "residual"),
        **_linear(layer + mlp[1], "residual", "neurons"),
        **{name: axes for norm in norms for name, axes in _norm(layer + norm).items()},
        **_norm(f"{BASE}ln_f"),
        **_linear("lm_head", "", "residual"),
        **_linear("score", "", "residual"),
        **_linear("classifier", "", "residual"),
    }


_GPT2 = _decoder(("attn.c_attn", "attn.c_proj"), ("mlp.c_fc", "mlp.c_proj"), ["ln_1", "ln_2"], ["wte", "wpe"])

_FALCON = _decoder(
    ("self_attention.query_key_value", "self_attention.dense"),
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ["input_layernorm", "post_attention_layernorm", "ln_attn", "ln_mlp"],
    ["word_embeddings"],
)

FAMILIES: dict[str, Family] = {
    "BERT, RoBERTa": _BERT,
    "Llama, Mistral, Qwen 2 and 3": _LLAMA,
    "ViT": _VIT,
    "GPT-2": _GPT2,
    "Falcon": _FALCON,
}
"""A family is added here; nothing else in the compiler names one."""


def axes_of(named: Mapping[str, Tensor]) -> dict[str, Axes] | None:
    """What every axis of a module's tensors runs over, from the one family that knows them all."""
    for family in FAMILIES.values():
        rows = {**family, **(_POOLED if f"{BASE}pooler.dense.weight" in named else {})}
        axes = {name: rows.get(_without_number(name)) for name in named}
        known = {name: entry for name, entry in axes.items() if entry is not None and len(entry) == named[name].ndim}
        if len(known) == len(named):
            return known
    return None


def _without_number(name: str) -> str:
    """A tensor's name with ``#`` for the number of its layer."""
    return re.sub(r"\.\d+\.", ".#.", name, count=1)
