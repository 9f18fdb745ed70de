"""What the keys and values of a generated text take."""

from __future__ import annotations

from typing import Any


def bytes_per_token(config: Any, itemsize: int) -> int:
    """At most, of one text's cache: keys and values of every layer of the model that has this configuration.

    Args:
        config: of the model.
        itemsize: bytes of a number that it computes with, whatever pages are in.
    """
    own = config.get_text_config()
    heads = getattr(own, "num_key_value_heads", None) or own.num_attention_heads
    width = getattr(own, "head_dim", None) or own.hidden_size // own.num_attention_heads
    return 2 * int(own.num_hidden_layers) * int(heads) * int(width) * itemsize
