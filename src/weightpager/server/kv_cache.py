"""What the keys and values of a generated text take."""

from __future__ import annotations

from typing import Any

_WIDEST = 4
"""Bytes of a number: activations are float32 or narrower, whatever pages are."""


def bytes_per_token(config: Any) -> int:
    """At most, of one text's cache: keys and values of every layer of the model that has this configuration."""
    own = config.get_text_config()
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    width = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    return 2 * int(own.num_hidden_layers) * int(heads) * int(width) * _WIDEST
