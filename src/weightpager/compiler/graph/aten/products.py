"""Products, look-ups, norms, attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from weightpager.compiler.graph.aten.elements import binary
from weightpager.compiler.graph.builder import Builder, Type, Value, traced_type
from weightpager.errors import NotExportableError


def _linear(builder: Builder, node: fx.Node, x: Value, weight: Value, bias: Value | None = None) -> Value:
    return builder.emit("linear", [x, weight, bias], {"activation": "none"}, traced_type(builder, node))


def _embedding(builder: Builder, node: fx.Node, table: Value, ids: Value, *_: Any) -> Value:
    return builder.emit("embedding", [table, ids], {}, traced_type(builder, node))


def _matmul(builder: Builder, node: fx.Node, x: Value, y: Value) -> Value:
    type_ = traced_type(builder, node)
    if len(x.shape) < 2 or len(y.shape) < 2:
        raise NotExportableError(f"{node.target} of a vector")
    if x.shape[-1] == 1 == y.shape[-2]:
        return binary(builder, "multiply", x, y, type_)
    return builder.emit("matmul", [x, y], {}, type_)


def _layer_norm(
    builder: Builder,
    node: fx.Node,
    x: Value,
    shape: list[int],
    weight: Value | None = None,
    bias: Value | None = None,
    epsilon: float = 1e-5,
    *_: Any,
) -> Value:
    if len(shape) != 1:
        raise NotExportableError("a layer norm over several axes")
    return builder.emit("layer_norm", [x, weight, bias], {"epsilon": epsilon}, traced_type(builder, node))


def _rms_norm(
    builder: Builder, node: fx.Node, x: Value, shape: list[int], weight: Value | None, epsilon: float | None = None
) -> Value:
    if len(shape) != 1 or epsilon is None:
        raise NotExportableError("an RMS norm over several axes, or without an epsilon")
    return builder.emit("rms_norm", [x, weight], {"epsilon": epsilon, "offset": 0}, traced_type(builder, node))


def _conv2d(
    builder: Builder,
    node: fx.Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Value:
    if isinstance(padding, str) or any(each != 1 for each in _pair(dilation)):
        raise NotExportableError("a convolution with dilation, or padding by name")
    attributes = {"stride": _pair(stride), "padding": _pair(padding), "groups": groups}
    return builder.emit("conv2d", [x, weight, bias], attributes, traced_type(builder, node))


def _pair(value: Any) -> list[int]:
    numbers = [value] if isinstance(value, int) else list(value)
    return numbers * 2 if len(numbers) == 1 else numbers


MOST_HEAD = 256
"""Features of a head that native code attends to; csrc/operators/vector/vectors.hpp has the same number."""


@dataclass(frozen=True)
class _LocalMask(Value):
    """A mask of padded tokens that also hides those that are ``size`` or more away."""

    size: int


def _local_mask(_builder: Builder, _node: fx.Node, mask: Value, size: int) -> Value:
    return _LocalMask(mask.operand, mask.type, size)


def _attention(
    builder: Builder,
    node: fx.Node,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None,
    scale: float,
    causal: bool,
    window: int,
    softcap: float,
) -> Value:
    # Looking both ways, an attention counts its own token, too.
    if isinstance(mask, _LocalMask) and window not in (mask.size, mask.size + 1):
        raise NotExportableError("a local mask that its attention doesn't state")
    if window and mask is not None and not isinstance(mask, _LocalMask):
        raise NotExportableError("a window that the attention's mask doesn't hide")
    deepest = max((size for size in (query.shape[-1], value.shape[-1]) if isinstance(size, int)), default=0)
    if deepest > MOST_HEAD:
        raise NotExportableError(f"attention with heads of {deepest} features, more than {MOST_HEAD}")
    attributes = {
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "index": sum(each.op == "attention" for each in builder.nodes),
        "layout": "bhtd",
    }
    shape = (*query.shape[:-1], value.shape[-1])
    return builder.emit("attention", [query, key, value, mask], attributes, Type(shape, "float32"))


TRANSLATIONS: dict[str, Callable[..., Any]] = {
    "aten.linear.default": _linear,
    "aten.embedding.default": _embedding,
    "aten.matmul.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "weightpager.attention.default": _attention,
    "weightpager.local_mask.default": _local_mask,
}
"""torch's name → its translation."""
