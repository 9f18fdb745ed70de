"""Attention over grouped heads, and rotary embeddings."""

from __future__ import annotations

import numpy as np

from weightpager.graph.graph import Array


class KeyValues:
    """Keys and values of earlier tokens, by an attention's index: float32 [batch, heads, tokens, features]."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[Array, Array]] = {}

    def appended(self, index: int, key: Array, value: Array) -> tuple[Array, Array]:
        """All tokens' keys and values, these behind the earlier ones."""
        if index in self.of:
            earlier = self.of[index]
            key = np.concatenate([earlier[0], key], 2)
            value = np.concatenate([earlier[1], value], 2)
        self.of[index] = key, value
        return key, value


def attention(
    query: Array,
    key: Array,
    value: Array,
    mask: Array | None,
    *,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
    index: int,
    layout: str,
    cache: KeyValues | None = None,
) -> Array:
    """Softmax over the keys that a query may see, times the values; of a query that sees none, zeros.

    Args:
        query: [B, H, T, D]; with the layout bthd, heads behind tokens, here, in keys, values and the result.
        key: [B, G, S, D], H a multiple of G: head h reads group h // (H / G).
        value: [B, G, S, V].
        mask: [B, S], not 0 where a key may be seen; all if None.
        scale: of query times key.
        causal: a key's position may not be greater than the query's. The last query's is the last key's.
        window: a key must be less than so many positions before the query, and if not causal, behind it; 0: any number.
        softcap: scores are ``softcap * tanh(score / softcap)``; 0: as they are.
        index: of this attention among the graph's.
        layout: bhtd or bthd.
        cache: keys and values of earlier tokens.
    """
    if layout == "bthd":
        query, key, value = (each.swapaxes(1, 2) for each in (query, key, value))
    if cache is not None:
        key, value = cache.appended(index, key, value)
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat(repeats, 1), value.repeat(repeats, 1)
    scores = query @ key.swapaxes(2, 3) * np.float32(scale)
    if softcap:
        scores = np.float32(softcap) * np.tanh(scores / np.float32(softcap))
    tokens, keys = scores.shape[2:]
    distance = np.arange(keys - tokens, keys)[:, None] - np.arange(keys)
    seen = distance >= 0 if causal else np.ones((tokens, keys), bool)
    if window:
        seen = seen & (abs(distance) < window)
    seen = np.broadcast_to(seen, scores.shape)
    if mask is not None:
        seen = seen & (mask != 0)[:, None, None, :]
    scores = np.where(seen, scores, -np.inf)
    greatest = np.maximum(scores.max(-1, keepdims=True, initial=-np.inf), np.finfo(np.float32).min)
    weights = np.exp(scores - greatest)
    total = weights.sum(-1, keepdims=True)
    found: Array = (weights / np.where(total > 0, total, 1)) @ value
    return found.swapaxes(1, 2) if layout == "bthd" else found


def rotary(x: Array, positions: Array, inv_freq: Array, *, interleaved: bool, scaling: float, layout: str) -> Array:
    """The leading ``2 * len(inv_freq)`` features of each head turned by its token's position; others as they are.

    Feature i is turned together with feature ``len(inv_freq) + i``; interleaved, 2i with 2i + 1.

    Args:
        x: [B, H, T, D], or with the layout bthd [B, T, H, D].
        positions: int64 [B or 1, T].
        inv_freq: [at most D / 2], what a position is multiplied by to give an angle.
        interleaved: which features go together.
        scaling: of sine and cosine.
        layout: bhtd or bthd.
    """
    angles = positions[..., None].astype(np.float32) * inv_freq
    angles = angles[:, None] if layout == "bhtd" else angles[:, :, None]
    cosine, sine = np.cos(angles) * np.float32(scaling), np.sin(angles) * np.float32(scaling)
    half = len(inv_freq)
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    pair = first * cosine - second * sine, second * cosine + first * sine
    joined = np.stack(pair, -1).reshape(turned.shape) if interleaved else np.concatenate(pair, -1)
    return np.concatenate([joined, rest], -1)
