"""A graph run over numpy: one plain function an operator. Slow, and the judge of everything that is fast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.polynomial import Chebyshev

from weightpager.graph.graph import DTYPES, Array, Graph, Operand


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


def segment_attention(query: Array, key: Array, value: Array, segments: Array, *, scale: float, layout: str) -> Array:
    """`attention` of the same tokens, where a query sees the keys of its own segment alone.

    ``segments`` is int64 [B, T]; tokens in a row that have the same number are one.
    """
    if layout == "bthd":
        query, key, value = (each.swapaxes(1, 2) for each in (query, key, value))
    runs = np.cumsum(np.diff(segments, axis=1, prepend=segments[:, :1]) != 0, 1)
    found = np.zeros((*query.shape[:3], value.shape[3]), np.float32)
    for run in range(int(runs.max(initial=-1)) + 1):
        inside = runs == run
        seen = attention(
            query, key, value, inside, scale=scale, causal=False, window=0, softcap=0.0, index=0, layout="bhtd"
        )
        found = np.where(inside[:, None, :, None], seen, found)
    return found.swapaxes(1, 2) if layout == "bthd" else found


def rotary(x: Array, positions: Array, inv_freq: Array, *, interleaved: bool, scaling: float, layout: str) -> Array:
    """The leading ``2 * len(inv_freq)`` features of each head turned by its token's position; others as they are.

    Feature i is turned together with feature ``len(inv_freq) + i``; interleaved, 2i with 2i + 1.

    Args:
        x: [B, H, T, D], or with the layout bthd [B, T, H, D].
        positions: int64 [B or 1, T], or [B or 1, T, len(inv_freq)], one for each angle.
        inv_freq: [at most D / 2], what a position is multiplied by to give an angle.
        interleaved: which features go together.
        scaling: of sine and cosine.
        layout: bhtd or bthd.
    """
    angles = (positions if positions.ndim == 3 else positions[..., None]).astype(np.float32) * inv_freq
    angles = angles[:, None] if layout == "bhtd" else angles[:, :, None]
    cosine, sine = np.cos(angles) * np.float32(scaling), np.sin(angles) * np.float32(scaling)
    half = len(inv_freq)
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    first, second = (turned[..., ::2], turned[..., 1::2]) if interleaved else (turned[..., :half], turned[..., half:])
    pair = first * cosine - second * sine, second * cosine + first * sine
    joined = np.stack(pair, -1).reshape(turned.shape) if interleaved else np.concatenate(pair, -1)
    return np.concatenate([joined, rest], -1)


_FLAT = 6.0  # from here on erf is 1 in float64
_ERF = Chebyshev.interpolate(np.vectorize(math.erf), 48, domain=[0, _FLAT])  # within 1e-12


def erf(x: Array) -> Array:
    """The error function, within 1e-7, as float32."""
    wide = x.astype(np.float64)
    return np.asarray(np.sign(wide) * _ERF(np.minimum(np.abs(wide), _FLAT)), np.float32)


def sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


def gelu(x: Array, *, approximate: str) -> Array:
    """``x`` times the normal distribution's share below it; with tanh, Hendrycks' and Gimpel's approximation."""
    if approximate == "none":
        share = 1 + erf(x * np.float32(math.sqrt(0.5)))
    else:
        share = 1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x))
    return np.asarray(np.float32(0.5) * x * share)


def _relu(x: Array) -> Array:
    return np.asarray(np.maximum(x, np.float32(0)))


def _silu(x: Array) -> Array:
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": lambda x: gelu(x, approximate="none"),
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": _relu,
    "silu": _silu,
    "tanh": np.tanh,
    "quick_gelu": lambda x: x * sigmoid(np.float32(1.702) * x),
}
"""Activation functions of `linear` and `gated_linear`, by name."""


def _binary(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Over two values that broadcast, or one and a number of its dtype."""

    def applied(x: Array, y: Array | None, *, scalar: float | None) -> Array:
        return function(x, np.asarray(scalar, x.dtype) if y is None else y)

    return applied


def layer_norm(x: Array, weight: Array | None, bias: Array | None, *, epsilon: float) -> Array:
    """``(x - mean) / sqrt(variance + epsilon) * weight + bias``."""
    centred = x - x.mean(-1, keepdims=True, dtype=np.float64)
    normed = centred / np.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)
    scaled: Array = normed.astype(np.float32)
    scaled = scaled if weight is None else scaled * weight
    return scaled if bias is None else scaled + bias


def rms_norm(x: Array, weight: Array | None, *, epsilon: float, offset: int) -> Array:
    """``x / sqrt(mean(x * x) + epsilon) * (weight + offset)``."""
    squares = np.square(x, dtype=np.float64).mean(-1, keepdims=True)
    scaled: Array = (x / np.sqrt(squares + epsilon)).astype(np.float32)
    return scaled if weight is None else scaled * (weight + np.float32(offset))


def _added(norm: Callable[..., Array]) -> Callable[..., tuple[Array, Array]]:
    """``x + y``, and its norm."""

    def applied(x: Array, y: Array, *weights: Array | None, **attributes: float) -> tuple[Array, Array]:
        return x + y, norm(x + y, *weights, **attributes)

    return applied


def mean(x: Array, *, axes: list[int], keep: bool) -> Array:
    """The mean over axes, which stay with size 1 or go."""
    return np.asarray(x.mean(tuple(axes), keepdims=keep, dtype=np.float64), np.float32)


def total(x: Array, *, axes: list[int], keep: bool) -> Array:
    """The sum over axes, which stay with size 1 or go; of conditions, how many are true."""
    wide = np.float64 if x.dtype == np.float32 else np.int64
    return np.asarray(x.sum(tuple(axes), keepdims=keep, dtype=wide), x.dtype if wide is np.float64 else np.int64)


def softmax(x: Array, *, axis: int) -> Array:
    """``exp(x)`` as shares of their sum over an axis."""
    powers = np.exp(x - x.max(axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis, keepdims=True))


def cumsum(x: Array, *, axis: int) -> Array:
    """Sums of an element and all before it; of conditions, numbers of true ones."""
    return np.asarray(x.cumsum(axis, dtype=x.dtype if x.dtype == np.float32 else np.int64))


def embedding(table: Array, ids: Array) -> Array:
    if ids.size and (ids.min() < 0 or ids.max() >= len(table)):
        raise ValueError(f"expected ids from 0 to {len(table) - 1}, found {ids.min()} to {ids.max()}")
    return np.take(table, ids, 0)


def linear(x: Array, weight: Array, bias: Array | None, *, activation: str) -> Array:
    """``activation(x · weightᵀ + bias)``, weight [out, in]."""
    product = x @ weight.T
    return ACTIVATIONS[activation](product if bias is None else product + bias)


def gated_linear(x: Array, gate_weight: Array, up_weight: Array, *, activation: str) -> Array:
    """``activation(x · gate_weightᵀ) * (x · up_weightᵀ)``."""
    return np.asarray(ACTIVATIONS[activation](x @ gate_weight.T) * (x @ up_weight.T))


def conv2d(x: Array, weight: Array, bias: Array | None, *, stride: list[int], padding: list[int], groups: int) -> Array:
    """A convolution over height and width.

    x is [B, C, H, W], weight [O, C / groups, kernel height, kernel width] and bias [O]. Stride and padding, with zeros
    on both sides, are those of height and width.
    """
    x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))[:, :, :: stride[0], :: stride[1]]
    batch, channels, height, width = windows.shape[:4]
    parts = windows.reshape(batch, groups, channels // groups, height, width, *weight.shape[2:])
    kernels = weight.reshape(groups, len(weight) // groups, *weight.shape[1:])
    product = np.einsum("bgchwij,gocij->bgohw", parts, kernels, optimize=True)
    product = product.reshape(batch, len(weight), height, width)
    return np.asarray(product if bias is None else product + bias[:, None, None])


def cut(x: Array, *, axis: int, start: int, end: int | None, step: int) -> Array:
    """Every ``step``-th element along an axis from ``start`` to before ``end``, as Python's slices count."""
    found: Array = x[(slice(None),) * axis + (slice(start, end, step),)]
    return found


def expand(x: Array, *, shape: list[int]) -> Array:
    """Axes of size 1 repeated, new ones in front; −1 keeps an axis as it is."""
    added = len(shape) - x.ndim
    return np.broadcast_to(x, [x.shape[at - added] if size == -1 else size for at, size in enumerate(shape)])


FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "embedding": embedding,
    "linear": linear,
    "gated_linear": gated_linear,
    "matmul": lambda x, y: np.asarray(x @ y),  # of the last two axes; the others broadcast
    "conv2d": conv2d,
    "attention": attention,
    "segment_attention": segment_attention,
    "rotary": rotary,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "add_layer_norm": _added(layer_norm),
    "add_rms_norm": _added(rms_norm),
    "mean": mean,
    "sum": total,
    "softmax": softmax,
    "cumsum": cumsum,
    "argmax": lambda x, *, axis: np.asarray(x.argmax(axis), np.int64),  # the first greatest
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(np.divide),
    "power": lambda x, *, scalar: np.asarray(x ** np.asarray(scalar, x.dtype)),
    "gelu": gelu,
    "relu": _relu,
    "silu": _silu,
    "tanh": np.tanh,
    "sigmoid": sigmoid,
    "exp": np.exp,
    "negate": np.negative,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sin": np.sin,
    "cos": np.cos,
    "equal": _binary(np.equal),
    "not_equal": _binary(np.not_equal),
    "less": _binary(np.less),
    "less_equal": _binary(np.less_equal),
    "greater": _binary(np.greater),
    "greater_equal": _binary(np.greater_equal),
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "where": np.where,
    "cast": lambda x, *, dtype: x.astype(DTYPES[dtype]),  # float32 towards zero to int64; true where not 0 to bool
    "reshape": lambda x, *, shape: x.reshape(shape),  # in row-major order; −1 stands for what is left
    "permute": lambda x, *, axes: np.transpose(x, axes),  # axis i of the result is axis ``axes[i]`` of ``x``
    "slice": cut,
    "concat": lambda *parts, axis: np.concatenate(parts, axis),
    "expand": expand,
    "arange": lambda *, start, end, step: np.arange(start, end, step, dtype=np.int64),
    "full": lambda *, shape, value, dtype: np.full(shape, value, DTYPES[dtype]),
    # Along an axis the element that the index says; index has as many axes as ``x``, the others of its size or 1.
    "gather": lambda x, index, *, axis: np.take_along_axis(x, index, axis),
    # Along an axis the slices that the ids say; the ids' axes come in its place.
    "take": lambda x, ids, *, axis: np.take(x, ids, axis),
}
"""Operator → its function: operands in order, None for one that is left out; attributes by name."""

_SIZED = ("reshape", "expand", "full", "arange", "slice")
"""Operators with sizes among their attributes, where a dimension stands for a number."""


def run(
    graph: Graph,
    parameters: Mapping[str, Array],
    inputs: Mapping[str, Array],
    cache: KeyValues | None = None,
) -> dict[str, Array]:
    """A graph's outputs, by name.

    Args:
        graph: validated.
        parameters: float32 (whole numbers int64) by canonical name.
        inputs: by name. A mask of a causal graph covers earlier tokens, too.
        cache: keys and values of earlier tokens, which what is computed now is appended to; None if there are none.
    """
    dims = {
        size: inputs[each.name].shape[axis]
        for each in reversed(graph.inputs)
        for axis, size in reversed(tuple(enumerate(each.shape)))
        if isinstance(size, str)
    }
    values: dict[str, Array] = {}

    def operand(of: Operand | None) -> Array | None:
        if of is None:
            return None
        if isinstance(of.key, int):
            return graph.constants[of.key]
        return {"value": values, "input": inputs, "parameter": parameters}[of.kind][of.key]

    for node in graph.nodes:
        attributes = dict(node.attributes)
        if node.op in _SIZED:
            attributes = {name: _sized(value, dims) for name, value in attributes.items()}
        if node.op == "attention":
            attributes["cache"] = cache
        results = FUNCTIONS[node.op](*map(operand, node.inputs), **attributes)
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    return {each.name: values[each.value] for each in graph.outputs}


def _sized(value: Any, dims: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        return [_sized(each, dims) for each in value]
    return dims.get(value, value) if isinstance(value, str) else value
