"""Keys and values that transformers keeps of what a model has read."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

_KINDS = (DynamicLayer, DynamicSlidingWindowLayer)
_STRETCHED = frozenset({"longrope", "dynamic"})
"""Ways to embed positions by which the length of all that is read decides how its beginning is."""

_NAMES = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _NAMES else "past_key_values"
"""What this release of transformers calls it, in arguments and in outputs."""


def new_cache(config: Any) -> DynamicCache | None:
    """An empty one; None for a model that keeps anything but keys and values: it can't be stopped and gone on with."""
    try:
        cache = DynamicCache(config=config.get_text_config(decoder=True))
    except Exception:  # noqa: BLE001 - whatever transformers says of layers that it has no cache for
        return None
    plain = all(type(layer) in _KINDS for layer in cache.layers)
    return cache if plain and "dynamic" not in _rope_types(config) else None


def reads_in_pieces(config: Any) -> bool:
    """Whether a text may be read a piece after the other, with the same result as at once but for rounding."""
    return new_cache(config) is not None and not _rope_types(config) & _STRETCHED


def without_cache(module: nn.Module) -> dict[str, bool]:
    """Arguments of a module's ``forward`` by which it keeps nothing of what it reads."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def bytes_per_token(config: Any, itemsize: int) -> int:
    """Most bytes that a token takes in a cache: keys and values of every layer; 0 of a model without attention.

    Args:
        config: of the model.
        itemsize: bytes of a number that it computes with, whatever pages are in.
    """
    text_config = config.get_text_config()
    queries = getattr(text_config, "num_attention_heads", None)
    if not queries:
        return 0
    heads = getattr(text_config, "num_key_value_heads", None) or queries
    width = getattr(text_config, "head_dim", None) or text_config.hidden_size // queries
    return 2 * int(text_config.num_hidden_layers) * int(heads) * int(width) * itemsize


def _rope_types(config: Any) -> set[object]:
    text_config = config.get_text_config()
    rope = getattr(text_config, "rope_parameters", None) or getattr(text_config, "rope_scaling", None) or {}
    kinds = [rope, *(part for part in rope.values() if isinstance(part, dict))]  # layers may have one each
    return {kind.get("rope_type", kind.get("type")) for kind in kinds}
