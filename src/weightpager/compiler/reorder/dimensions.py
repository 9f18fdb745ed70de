"""Which tensors lie along which dimension of an architecture, and may be permuted along it together.

A table per family says for every tensor what each of its axes runs over. A model that has a single tensor that its
family's table doesn't know is not permuted at all: a table that is nearly right would give a wrong model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel

from weightpager.backends.torch.architecture import BASE
from weightpager.bundle.format.picture_tower import CONNECTOR, TOWER
from weightpager.compiler.model.dense_model import parameters
from weightpager.compiler.model.picture_tower import LANGUAGE

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


def _in_place(family: Family) -> Family:
    """The same, its residual stream left as it is: whoever reads what a tower sees may join or reshape it."""
    return {name: tuple("" if along == RESIDUAL else along for along in axes) for name, axes in family.items()}


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

_SEEN = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")

_CLIP: Family = {
    f"{BASE}embeddings.class_embedding": ("residual",),
    f"{BASE}embeddings.patch_embedding.weight": ("residual", "", "", ""),
    f"{BASE}embeddings.patch_embedding.bias": ("residual",),
    f"{BASE}embeddings.position_embedding.weight": _EMBEDDING,
    **_norm(f"{BASE}pre_layrnorm"),
    **_norm(f"{BASE}post_layernorm"),
    **_layers(f"{BASE}encoder.layers.#.", _SEEN, (["mlp.fc1"], "mlp.fc2"), ["layer_norm1", "layer_norm2"]),
}
"""SigLIP's too, but for its head, which features don't pass."""

_DINO_LAYER = f"{BASE}encoder.layer.#."

_DINO: Family = {
    f"{BASE}embeddings.cls_token": ("", "", "residual"),
    f"{BASE}embeddings.mask_token": ("", "residual"),
    f"{BASE}embeddings.position_embeddings": ("", "", "residual"),
    f"{BASE}embeddings.patch_embeddings.projection.weight": ("residual", "", "", ""),
    f"{BASE}embeddings.patch_embeddings.projection.bias": ("residual",),
    **{f"{_DINO_LAYER}layer_scale{number}.lambda1": ("residual",) for number in (1, 2)},
    **_norm(f"{BASE}layernorm"),
    **_layers(
        _DINO_LAYER,
        ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        (["mlp.fc1"], "mlp.fc2"),
        ["norm1", "norm2"],
    ),
}


def _of_runs(mlp: tuple[list[str], str]) -> Family:
    """A tower of runs of patches: queries, keys and values come out of one linear layer, and stay in place."""
    layer = f"{BASE}blocks.#."
    rows: dict[str, Axes] = {f"{BASE}patch_embed.proj.weight": ("residual", "", "", "", "")}
    rows |= _linear(f"{layer}attn.qkv", "", "residual") | _linear(f"{layer}attn.proj", "residual", "")
    for name in mlp[0]:
        rows |= _linear(layer + name, "neurons", "residual")
    rows |= _linear(layer + mlp[1], "residual", "neurons")
    return {**rows, **_norm(f"{layer}norm1"), **_norm(f"{layer}norm2")}


TOWERS: dict[str, Family] = {
    "CLIP, SigLIP": _in_place(_CLIP),
    "DINOv2": _in_place(_DINO),
    "Qwen2-VL": _in_place(_of_runs((["mlp.fc1"], "mlp.fc2"))),
    "Qwen2.5-VL": _in_place(_of_runs((["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"))),
}
"""Picture towers before a language model of another family."""

_MERGER = f"{BASE}visual.merger."
"""A connector that lies inside its tower."""

_CONNECTOR: dict[str, Axes] = {
    **_linear(f"{CONNECTOR[0]}linear_1", "", ""),
    **_linear(f"{CONNECTOR[0]}linear_2", "residual", ""),
    **_linear(f"{CONNECTOR[1]}modality_projection.proj", "residual", ""),
    CONNECTOR[2]: ("residual",),
    **{f"{_MERGER}ln_q.{kind}": ("",) for kind in ("weight", "bias")},
    **_linear(f"{_MERGER}mlp.0", "", ""),
    **_linear(f"{_MERGER}mlp.2", "residual", ""),
}
"""It writes into the language model's residual stream."""

FAMILIES: dict[str, Family] = {
    "BERT, RoBERTa": _BERT,
    "Llama, Mistral, Qwen 2 and 3": _LLAMA,
    "ViT": _VIT,
    "GPT-2": _GPT2,
    "Falcon": _FALCON,
}
"""A family is added here; nothing else in the compiler names one."""


def axes_of(named: Mapping[str, Tensor]) -> dict[str, Axes] | None:
    """What every axis of a module's tensors runs over, from the one family that knows them all.

    Of a model that reads pictures, from one family for its picture tower and one for all else.
    """
    tower = {name: tensor for name, tensor in named.items() if _in_tower(name)}
    others = {name: tensor for name, tensor in named.items() if name not in tower}
    if not tower:
        return _axes_of(named, FAMILIES.values())
    seen = _axes_of(tower, [_inside(prefix, family) for family in TOWERS.values() for prefix in TOWER])
    read = _axes_of(
        others, [_inside(prefix, family) | _CONNECTOR for family in FAMILIES.values() for prefix in LANGUAGE]
    )
    return None if seen is None or read is None else {**seen, **read}


def _in_tower(name: str) -> bool:
    return name.startswith(TOWER) and not name.startswith(_MERGER)


def _inside(prefix: str, family: Family) -> dict[str, Axes]:
    """A family whose base is a part of another one."""
    return {
        f"{prefix}{name.removeprefix(BASE)}" if name.startswith(BASE) else name: axes for name, axes in family.items()
    }


def _axes_of(named: Mapping[str, Tensor], families: Iterable[Mapping[str, Axes]]) -> dict[str, Axes] | None:
    for family in families:
        rows = {**family, **(_POOLED if f"{BASE}pooler.dense.weight" in named else {})}
        axes = {name: rows.get(name, rows.get(_without_number(name))) for name in named}
        known = {name: entry for name, entry in axes.items() if entry is not None and len(entry) == named[name].ndim}
        if len(known) == len(named):
            return known
    return None


def _without_number(name: str) -> str:
    """A tensor's name with ``#`` for the number of its layer."""
    return re.sub(r"\.\d+\.", ".#.", name, count=1)


Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One axis of a tensor along a dimension: read as [groups, repeat, units, inner].

    Attributes:
        tensor: its key, see `tensor_key`.
        repeat: how often a group's units come, one run after the other.
        inner: neighbouring elements that make up a unit.
    """

    tensor: str
    axis: int
    repeat: int = 1
    inner: int = 1

    def spread(self, order: Indices) -> Indices:
        """The order of the axis' elements that an order ``[groups, units]`` of the dimension means."""
        groups, units = order.shape
        elements = np.arange(groups * self.repeat * units * self.inner)
        cut = elements.reshape(groups, self.repeat, units, self.inner)
        spread: Indices = np.take_along_axis(cut, order[:, None, :, None], 2).reshape(-1)
        return spread


@dataclass(frozen=True)
class Dimension:
    """Units that may change places inside their group, in all parts at once, without changing what is computed."""

    name: str
    groups: int
    units: int
    parts: tuple[Part, ...]

    @property
    def unchanged(self) -> Indices:
        """The order ``[groups, units]`` that leaves everything where it is."""
        return np.tile(np.arange(self.units), (self.groups, 1))


def tensor_key(task: str, name: str) -> str:
    """How a tensor is called among all tasks' tensors: heads of the same name read different things."""
    return name if name.startswith(BASE) else f"{task}/{name}"


def dimensions(models: Mapping[str, PreTrainedModel]) -> tuple[Dimension, ...]:
    """The permutable dimensions of tasks' modules over one base; none if a tensor of theirs isn't known.

    A dimension of which a part has another size than it should is left out.
    """
    axes: dict[str, Axes] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for task, model in models.items():
        named = parameters(model)
        model_axes = axes_of(named)
        if model_axes is None:
            return ()
        axes |= {tensor_key(task, name): entry for name, entry in model_axes.items()}
        sizes |= {tensor_key(task, name): tuple(tensor.shape) for name, tensor in named.items()}
    config: Any = next(iter(models.values())).config
    tower = {name: entry for name, entry in axes.items() if _in_tower(name)}
    others = {name: entry for name, entry in axes.items() if name not in tower}
    seen = _Finder(tower, sizes, "tower, ").all(config.vision_config) if tower else ()
    return seen + _Finder(others, sizes).all(config.text_config if tower else config)


def _layer(key: str) -> str:
    match = re.search(r"\.(\d+)\.", key.rpartition("/")[2])
    return match[1] if match else ""


@dataclass
class _Finder:
    """Builds dimensions from the table's entries, each only if all its parts have the size that they should."""

    axes: Mapping[str, Axes]
    sizes: Mapping[str, tuple[int, ...]]
    name: str = ""
    found: list[Dimension] = field(default_factory=list)

    def all(self, config: Any) -> tuple[Dimension, ...]:
        """Every dimension of the model."""
        self._add(RESIDUAL, 1, int(config.hidden_size), {"residual": (1, 1)}, None)
        heads = int(config.num_attention_heads)
        groups = int(getattr(config, "num_key_value_heads", None) or heads)
        channels = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        queries = heads // groups
        layers = dict.fromkeys(_layer(key) for key in self.axes if _layer(key))
        for layer in layers:
            width = self._width("neurons", layer)
            self._add(f"layer {layer}, neurons", 1, width, {"neurons": (1, 1)}, layer)
            if not self._has_heads(layer, groups, queries, channels):
                continue
            whole = {"query": (1, queries * channels), "key": (1, channels), "value": (1, channels)}
            self._add(f"layer {layer}, heads", 1, groups, whole | {"mixed": (1, queries * channels)}, layer)
            query_axes = {"query": (1, channels), "mixed": (1, channels)}
            self._add(f"layer {layer}, query heads", groups, queries, query_axes, layer)
            values = {"value": (1, 1), "mixed": (queries, 1)}
            self._add(f"layer {layer}, value channels", groups, channels, values, layer)
        return tuple(self.found)

    def _add(self, name: str, groups: int, units: int, kinds: Mapping[str, tuple[int, int]], layer: str | None) -> None:
        parts = tuple(
            Part(key, axis, *kinds[kind])
            for key, entry in self.axes.items()
            for axis, kind in enumerate(entry)
            if kind in kinds and (layer is None or _layer(key) == layer)
        )
        fitting = (self.sizes[part.tensor][part.axis] == groups * part.repeat * units * part.inner for part in parts)
        if units > 1 and parts and all(fitting):
            self.found.append(Dimension(self.name + name, groups, units, parts))

    def _has_heads(self, layer: str, groups: int, queries: int, channels: int) -> bool:
        sizes = {kind: self._width(kind, layer) for kind in ("query", "key", "value", "mixed")}
        if not {self._width("channels", layer)} <= {0, channels}:
            return False
        wide, narrow = groups * queries * channels, groups * channels
        return sizes == {"query": wide, "key": narrow, "value": narrow, "mixed": wide}

    def _width(self, kind: str, layer: str) -> int:
        """The size of a layer's axes of this kind; 0 if there are none, -1 if they differ."""
        sizes = {
            self.sizes[key][axis]
            for key, entry in self.axes.items()
            if _layer(key) == layer
            for axis, along in enumerate(entry)
            if along == kind
        }
        return -1 if len(sizes) > 1 else sum(sizes)
