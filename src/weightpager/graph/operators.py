"""The operators of a graph, as one table. What each computes: ``weightpager/graph/reference``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_AXES = 8
"""Axes of a value."""

MOST_SIZE = 2**31 - 1
"""The largest size of an axis, and the largest whole number in a graph except an index of 64 bits."""

DIMENSIONS = ("batch", "length", "features")
"""Sizes that a call states: how many inputs there are, their tokens, and what stands in the place of some of these."""

DIMENSION_LISTS = (*(DIMENSIONS[:count] for count in range(1, len(DIMENSIONS) + 1)), ("length",))
"""The dimensions that a graph may have; ``length`` alone is the places of one picture."""

_DIMENSIONS = ", ".join(DIMENSIONS)


_LARGEST = 3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class AttributeKind:
    """A kind of JSON values: in words, for errors, and whether a value is one."""

    words: str
    accepts: Callable[[Any], bool]


def is_whole(value: Any, least: int, most: int = MOST_SIZE) -> bool:
    """Whether a JSON value is an integer, not a boolean, within bounds."""
    return type(value) is int and least <= value <= most


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number that float32 or int64 holds."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is float and abs(value) <= _LARGEST  # not of NaN


def is_size(value: Any) -> bool:
    """Whether a JSON value is the size of an axis: a number, or a dimension that a call states."""
    return is_whole(value, 0) or (isinstance(value, str) and value in DIMENSIONS)


def _is_shape(value: Any, unknown: int) -> bool:
    if not isinstance(value, list) or len(value) > MOST_AXES or value.count(-1) > unknown:
        return False
    return all(is_size(each) or is_whole(each, -1) for each in value)


def _are_axes(value: Any) -> bool:
    whole = isinstance(value, list) and 0 < len(value) <= MOST_AXES
    return whole and all(is_whole(each, 0, MOST_AXES - 1) for each in value) and len(set(value)) == len(value)


def choice(*names: str) -> AttributeKind:
    return AttributeKind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def whole(least: int, most: int = MOST_SIZE) -> AttributeKind:
    return AttributeKind(f"an integer from {least} to {most}", lambda value: is_whole(value, least, most))


def pair(least: int, most: int = 2**12) -> AttributeKind:
    return AttributeKind(
        f"two integers from {least} to {most}",
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(is_whole(each, least, most) for each in value)
        ),
    )


BOOLEAN = AttributeKind("true or false", lambda value: type(value) is bool)
NUMBER = AttributeKind("a finite number", is_number)
SCALAR = AttributeKind("a finite number, or null", lambda value: value is None or is_number(value))
POSITIVE = AttributeKind("a positive number", lambda value: is_number(value) and value > 0)
NOT_NEGATIVE = AttributeKind("a number of at least 0", lambda value: is_number(value) and value >= 0)
AXIS = whole(0, MOST_AXES - 1)
AXES = AttributeKind("a list of axes, each once", _are_axes)
SHAPE = AttributeKind(f"a list of sizes, {_DIMENSIONS}, or one -1", lambda value: _is_shape(value, 1))
KEPT_SHAPE = AttributeKind(f"a list of sizes, {_DIMENSIONS}, or -1", lambda value: _is_shape(value, MOST_AXES))
FULL_SHAPE = AttributeKind(f"a list of sizes, or {_DIMENSIONS}", lambda value: _is_shape(value, 0))
BOUND = AttributeKind(f"an integer, or {_DIMENSIONS}", lambda value: is_size(value) or is_whole(value, -MOST_SIZE))
OPEN_BOUND = AttributeKind(f"{BOUND.words}, or null", lambda value: value is None or BOUND.accepts(value))
STEP = whole(1)
ACTIVATION = choice("none", "gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu")
DTYPE = choice("float32", "int64", "bool")
LAYOUT = choice("bhtd", "bthd")


MOST_JOINED = 256
"""Values that one concat takes."""

_OFFSET = whole(0, 1)  # Gemma's norms multiply by 1 + weight


@dataclass(frozen=True)
class Operator:
    """What a node of an operator has.

    Attributes:
        inputs: names of its operands, in order.
        optional: how many of the last ones may be left out, as null; a node has an entry for each of them all the same.
        attributes: name → kind. A node has exactly these.
        outputs: how many values it gives.
        joins: takes any number of operands, up to `MOST_JOINED`, instead of ``inputs``.
        scalar: its second operand may be the attribute ``scalar`` instead: exactly one of them is null.
    """

    inputs: tuple[str, ...]
    attributes: Mapping[str, AttributeKind] = field(default_factory=dict)
    optional: int = 0
    outputs: int = 1
    joins: bool = False
    scalar: bool = False


_UNARY = Operator(("x",))
_BINARY = Operator(("x", "y"), {"scalar": SCALAR}, optional=1, scalar=True)

OPERATORS: Mapping[str, Operator] = {
    # products and look-ups
    "embedding": Operator(("table", "ids")),
    "linear": Operator(("x", "weight", "bias"), {"activation": ACTIVATION}, optional=1),
    "gated_linear": Operator(("x", "gate_weight", "up_weight"), {"activation": ACTIVATION}),
    "conv2d": Operator(
        ("x", "weight", "bias"), {"stride": pair(1), "padding": pair(0), "groups": whole(1)}, optional=1
    ),
    "matmul": Operator(("x", "y")),
    # attention
    "attention": Operator(
        ("query", "key", "value", "mask"),
        {
            "scale": POSITIVE,
            "causal": BOOLEAN,
            "window": whole(0),
            "softcap": NOT_NEGATIVE,
            "index": whole(0, 2**16),
            "layout": LAYOUT,
        },
        optional=1,
    ),
    "segment_attention": Operator(("query", "key", "value", "segments"), {"scale": POSITIVE, "layout": LAYOUT}),
    "rotary": Operator(("x", "positions", "inv_freq"), {"interleaved": BOOLEAN, "scaling": POSITIVE, "layout": LAYOUT}),
    # norms
    "layer_norm": Operator(("x", "weight", "bias"), {"epsilon": NOT_NEGATIVE}, optional=2),
    "rms_norm": Operator(("x", "weight"), {"epsilon": NOT_NEGATIVE, "offset": _OFFSET}, optional=1),
    "add_layer_norm": Operator(("x", "y", "weight", "bias"), {"epsilon": NOT_NEGATIVE}, optional=2, outputs=2),
    "add_rms_norm": Operator(("x", "y", "weight"), {"epsilon": NOT_NEGATIVE, "offset": _OFFSET}, optional=1, outputs=2),
    # element by element
    **dict.fromkeys(("add", "subtract", "multiply", "divide"), _BINARY),
    "power": Operator(("x",), {"scalar": NUMBER}),
    "gelu": Operator(("x",), {"approximate": choice("none", "tanh")}),
    **dict.fromkeys(("relu", "silu", "tanh", "sigmoid", "exp", "negate", "sqrt", "rsqrt", "sin", "cos"), _UNARY),
    # over axes
    **{name: Operator(("x",), {"axes": AXES, "keep": BOOLEAN}) for name in ("mean", "sum")},
    **{name: Operator(("x",), {"axis": AXIS}) for name in ("softmax", "cumsum", "argmax")},
    # truth
    **dict.fromkeys(("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"), _BINARY),
    **{name: Operator(("x", "y")) for name in ("logical_and", "logical_or")},
    "logical_not": _UNARY,
    "where": Operator(("condition", "x", "y")),
    "cast": Operator(("x",), {"dtype": DTYPE}),
    # shapes
    "reshape": Operator(("x",), {"shape": SHAPE}),
    "permute": Operator(("x",), {"axes": AXES}),
    "slice": Operator(("x",), {"axis": AXIS, "start": BOUND, "end": OPEN_BOUND, "step": STEP}),
    "concat": Operator((), {"axis": AXIS}, joins=True),
    "expand": Operator(("x",), {"shape": KEPT_SHAPE}),
    "arange": Operator((), {"start": BOUND, "end": BOUND, "step": STEP}),
    "full": Operator((), {"shape": FULL_SHAPE, "value": NUMBER, "dtype": DTYPE}),
    "gather": Operator(("x", "index"), {"axis": AXIS}),
    "take": Operator(("x", "ids"), {"axis": AXIS}),
}
"""Name → what its nodes have. Values are float32; ids, positions and indices int64; conditions bool."""

WEIGHTS: Mapping[str, tuple[int, ...]] = {"embedding": (0,), "linear": (1,), "gated_linear": (1, 2), "conv2d": (1,)}
"""Name → which operands are tables or weights: parameters or constants as they are stored, and nothing computed."""
