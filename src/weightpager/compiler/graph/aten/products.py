"""Products, look-ups, norms, attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.nn.functional import interpolate

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


def _conv3d(
    builder: Builder,
    node: fx.Node,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = (1, 1, 1),
    padding: Any = (0, 0, 0),
    *_: Any,
) -> Value:
    """A product, where each of what is convolved [N, C, T, H, W] has the size of the kernel, as patches have."""
    if x.shape[1:] != weight.shape[1:] or list(stride) != list(weight.shape[2:]) or any(padding) or bias is not None:
        raise NotExportableError(f"{node.target} of more than one patch at a time")
    type_ = traced_type(builder, node)
    size = math.prod(int(each or 0) for each in weight.shape[1:])
    patches, kernels = builder.reshaped(x, (x.shape[0], size)), builder.reshaped(weight, (weight.shape[0], size))
    across = builder.emit("permute", [kernels], {"axes": [1, 0]}, Type((size, weight.shape[0]), "float32"))
    product = builder.emit("matmul", [patches, across], {}, Type((x.shape[0], weight.shape[0]), "float32"))
    return builder.reshaped(product, type_.shape)


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


def _segment_attention(
    builder: Builder, node: fx.Node, query: Value, key: Value, value: Value, segments: Value, scale: float
) -> Value:
    attributes = {"scale": scale, "layout": "bhtd"}
    type_ = traced_type(builder, node)
    return builder.emit("segment_attention", [query, key, value, segments], attributes, type_)


def _bicubic(
    builder: Builder,
    node: fx.Node,
    x: Value,
    size: list[int] | None,
    align_corners: bool,
    *factors: Any,
) -> Value:
    """Rows and columns [1, C, H, W] scaled by a matrix of constants each: every point is a sum of others."""
    given = [each for factor in factors for each in (factor if isinstance(factor, (list, tuple)) else [factor])]
    if size is None or any(each is not None for each in given) or not all(isinstance(each, int) for each in x.shape):
        raise NotExportableError(f"{node.target} by factors, or of what has no fixed size")
    count, channels, height, width = (int(each or 0) for each in x.shape)
    if count != 1:
        raise NotExportableError(f"{node.target} of several images")
    rows, columns = (
        builder.constant(_bicubic_matrix(*each, align_corners)) for each in ((height, size[0]), (width, size[1]))
    )
    # Channels last, where most tables of positions have them: then each product is of few and large matrices.
    last = builder.emit("permute", [x], {"axes": [0, 2, 3, 1]}, Type((1, height, width, channels), x.dtype))
    flat = builder.reshaped(last, (height, width * channels))
    scaled = builder.emit("matmul", [rows, flat], {}, Type((size[0], width * channels), "float32"))
    split = builder.reshaped(scaled, (size[0], width, channels))
    whole = builder.emit("matmul", [columns, split], {}, Type((size[0], size[1], channels), "float32"))
    image = builder.reshaped(whole, (1, size[0], size[1], channels))
    return builder.emit("permute", [image], {"axes": [0, 3, 1, 2]}, Type((1, channels, *size), "float32"))


def _bicubic_matrix(size: int, wanted: int, align_corners: bool) -> Any:
    """What a column of so many points is multiplied with, [wanted, size]."""
    each = torch.eye(size)[:, None, :, None]  # one point is 1, of an image that is one point wide
    scaled = interpolate(each, (wanted, 1), mode="bicubic", align_corners=align_corners)
    return scaled[:, 0, :, 0].T.numpy()


TRANSLATIONS: dict[str, Callable[..., Any]] = {
    "aten.upsample_bicubic2d.default": _bicubic,
    "aten.upsample_bicubic2d.vec": _bicubic,
    "aten.linear.default": _linear,
    "aten.embedding.default": _embedding,
    "aten.matmul.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.layer_norm.default": _layer_norm,
    "aten.rms_norm.default": _rms_norm,
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "aten.conv3d.default": _conv3d,
    "weightpager.attention.default": _attention,
    "weightpager.segment_attention.default": _segment_attention,
    "weightpager.local_mask.default": _local_mask,
}
"""torch's name → its translation."""
