"""Arithmetic, activations, comparisons, sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from weightpager.compiler.graph.builder import Builder, Type, Value, traced_type
from weightpager.errors import NotExportableError


def _unary(op: str) -> Callable[..., Value]:
    return lambda builder, node, x: builder.emit(op, [x], {}, traced_type(builder, node))


def _arithmetic(op: str) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, x: Any, y: Any, alpha: float = 1) -> Value:
        if alpha != 1:
            raise NotExportableError(f"{node.target} with alpha")
        return binary(builder, op, x, y, traced_type(builder, node))

    return translate


def _add_into(builder: Builder, node: fx.Node, x: Value, y: Any, alpha: float = 1) -> Value:
    """A sum that is written over its first operand. It is an ordinary one if nothing else reads that operand."""
    overwritten: Any = node.args[0]
    if str(overwritten.target) != "aten.linear.default" or len(overwritten.users) > 1:
        raise NotExportableError(f"the operator {node.target} on a tensor that is read elsewhere")
    return _arithmetic("add")(builder, node, x, y, alpha)


def _comparison(op: str) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, x: Value, y: Any) -> Value:
        floating = "float32" in (x.dtype, y.dtype if isinstance(y, Value) else "") or isinstance(y, float)
        return binary(builder, op, x, y, traced_type(builder, node), "float32" if floating else "int64")

    return translate


def binary(builder: Builder, op: str, x: Any, y: Any, type_: Type, dtype: str = "") -> Value:
    """A node over two values of one dtype, or one and a number."""
    dtype = dtype or type_.dtype
    if not isinstance(x, Value):
        if op not in ("add", "multiply"):
            x = _scalar(builder, x, dtype)
        else:
            x, y = y, x
    x = builder.cast(x, dtype)
    if isinstance(y, Value):
        return builder.emit(op, [x, builder.cast(y, dtype)], {"scalar": None}, type_)
    if not isinstance(y, (int, float)):
        raise NotExportableError(f"{op} with a size")
    return builder.emit(op, [x, None], {"scalar": _number(y, dtype)}, type_)


def _number(value: Any, dtype: str) -> float | int:
    return float(value) if dtype == "float32" else int(value)


def _reversed_subtract(builder: Builder, node: fx.Node, x: Value, y: Any, alpha: float = 1) -> Value:
    type_ = traced_type(builder, node)
    if alpha != 1 or isinstance(y, Value):
        raise NotExportableError(str(node.target))
    negated = builder.emit("negate", [builder.cast(x, type_.dtype)], {}, type_)
    return binary(builder, "add", negated, y, type_)


def _power(builder: Builder, node: fx.Node, x: Value, exponent: float) -> Value:
    type_ = traced_type(builder, node)
    return builder.emit("power", [builder.cast(x, type_.dtype)], {"scalar": _number(exponent, type_.dtype)}, type_)


def _square(builder: Builder, node: fx.Node, x: Value) -> Value:
    return binary(builder, "multiply", x, x, traced_type(builder, node))


def _gelu(builder: Builder, node: fx.Node, x: Value, approximate: str = "none") -> Value:
    return builder.emit("gelu", [x], {"approximate": approximate}, traced_type(builder, node))


def _reduced(op: str) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, x: Value, axes: Any = None, keep: bool = False, **_: Any) -> Value:
        axes = range(len(x.shape)) if axes is None else [axes] if isinstance(axes, int) else axes
        positive_axes = [each % len(x.shape) for each in axes]
        return builder.emit(op, [x], {"axes": positive_axes, "keep": keep}, traced_type(builder, node))

    return translate


def _along(op: str) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, x: Value, axis: int, *_: Any, **__: Any) -> Value:
        return builder.emit(op, [x], {"axis": axis % len(x.shape)}, traced_type(builder, node))

    return translate


def _argmax(builder: Builder, node: fx.Node, x: Value, axis: int, keep: bool = False) -> Value:
    type_ = traced_type(builder, node)
    axis %= len(x.shape)
    gone = Type((*x.shape[:axis], *x.shape[axis + 1 :]), "int64")
    indices = builder.emit("argmax", [x], {"axis": axis}, gone)
    return builder.reshaped(indices, type_.shape) if keep else indices


def _logical(op: str) -> Callable[..., Value]:
    def translate(builder: Builder, node: fx.Node, *values: Value) -> Value:
        type_ = traced_type(builder, node)
        if type_.dtype != "bool":
            raise NotExportableError(f"{node.target} of whole numbers")
        return builder.emit(op, [builder.cast(each, "bool") for each in values], {}, type_)

    return translate


def _where(builder: Builder, node: fx.Node, condition: Value, x: Value, y: Value) -> Value:
    type_ = traced_type(builder, node)
    return builder.emit("where", [condition, builder.cast(x, type_.dtype), builder.cast(y, type_.dtype)], {}, type_)


def _masked_fill(builder: Builder, node: fx.Node, x: Value, mask: Value, value: float) -> Value:
    type_ = traced_type(builder, node)
    return builder.emit("where", [mask, _scalar(builder, value, type_.dtype), x], {}, type_)


def _scalar(builder: Builder, value: float, dtype: str) -> Value:
    attributes: dict[str, Any] = {"shape": [], "value": _number(value, dtype), "dtype": dtype}
    return builder.emit("full", [], attributes, Type((), dtype))


def _cast(builder: Builder, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    return builder.cast(x, traced_type(builder, node).dtype)


def _same(builder: Builder, node: fx.Node, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _dropout(builder: Builder, node: fx.Node, x: Value, share: float, training: bool) -> Value:
    if training:
        raise NotExportableError("dropout in training")
    return x


_CASTS = ("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default")
_SAMES = ("alias.default", "contiguous.default", "clone.default", "detach.default", "detach_.default",
          "lift_fresh_copy.default")  # fmt: skip

_COMPARED = {"eq": "equal", "ne": "not_equal", "lt": "less", "le": "less_equal", "gt": "greater", "ge": "greater_equal"}
_COUNTED = {"add": "add", "sub": "subtract", "mul": "multiply", "div": "divide"}
_UNARY = {
    "relu": "relu", "silu": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "exp": "exp", "neg": "negate", "sqrt": "sqrt",
    "rsqrt": "rsqrt", "sin": "sin", "cos": "cos",
}  # fmt: skip

TRANSLATIONS: dict[str, Callable[..., Any]] = {
    **{f"aten.{name}.default": _unary(op) for name, op in _UNARY.items()},
    **{f"aten.{name}.{form}": _arithmetic(op) for name, op in _COUNTED.items() for form in ("Tensor", "Scalar")},
    **{f"aten.{name}.{form}": _comparison(op) for name, op in _COMPARED.items() for form in ("Tensor", "Scalar")},
    **{f"aten.{name}": _cast for name in _CASTS},
    **{f"aten.{name}": _same for name in _SAMES},
    "aten.add_.Tensor": _add_into,
    "aten.dropout.default": _dropout,
    "aten.rsub.Scalar": _reversed_subtract,
    "aten.pow.Tensor_Scalar": _power,
    "aten.square.default": _square,
    "aten.gelu.default": _gelu,
    "aten.mean.dim": _reduced("mean"),
    "aten.sum.dim_IntList": _reduced("sum"),
    "aten.softmax.int": _along("softmax"),
    "aten._softmax.default": _along("softmax"),
    "aten.cumsum.default": _along("cumsum"),
    "aten.argmax.default": _argmax,
    "aten.logical_and.default": _logical("logical_and"),
    "aten.logical_or.default": _logical("logical_or"),
    "aten.logical_not.default": _logical("logical_not"),
    "aten.bitwise_and.Tensor": _logical("logical_and"),
    "aten.bitwise_or.Tensor": _logical("logical_or"),
    "aten.__and__.Tensor": _logical("logical_and"),
    "aten.__or__.Tensor": _logical("logical_or"),
    "aten.bitwise_not.default": _logical("logical_not"),
    "aten.where.self": _where,
    "aten.masked_fill.Scalar": _masked_fill,
}
"""torch's name → its translation."""
