"""The operators of a graph, as one table. What each computes: ``weightpager/graph/reference``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightpager.graph.attributes import (
    ACTIVATION,
    AXES,
    AXIS,
    BOOLEAN,
    BOUND,
    DTYPE,
    FULL_SHAPE,
    KEPT_SHAPE,
    LAYOUT,
    NOT_NEGATIVE,
    NUMBER,
    OPEN_BOUND,
    POSITIVE,
    SCALAR,
    SHAPE,
    STEP,
    AttributeKind,
    choice,
    pair,
    whole,
)

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


def _unary() -> Operator:
    return Operator(("x",))


def _binary() -> Operator:
    return Operator(("x", "y"), {"scalar": SCALAR}, optional=1, scalar=True)


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
    "rotary": Operator(("x", "positions", "inv_freq"), {"interleaved": BOOLEAN, "scaling": POSITIVE, "layout": LAYOUT}),
    # norms
    "layer_norm": Operator(("x", "weight", "bias"), {"epsilon": NOT_NEGATIVE}, optional=2),
    "rms_norm": Operator(("x", "weight"), {"epsilon": NOT_NEGATIVE, "offset": _OFFSET}, optional=1),
    "add_layer_norm": Operator(("x", "y", "weight", "bias"), {"epsilon": NOT_NEGATIVE}, optional=2, outputs=2),
    "add_rms_norm": Operator(("x", "y", "weight"), {"epsilon": NOT_NEGATIVE, "offset": _OFFSET}, optional=1, outputs=2),
    # element by element
    **{name: _binary() for name in ("add", "subtract", "multiply", "divide")},
    "power": Operator(("x",), {"scalar": NUMBER}),
    "gelu": Operator(("x",), {"approximate": choice("none", "tanh")}),
    **{name: _unary() for name in ("relu", "silu", "tanh", "sigmoid", "exp", "negate", "sqrt", "rsqrt", "sin", "cos")},
    # over axes
    **{name: Operator(("x",), {"axes": AXES, "keep": BOOLEAN}) for name in ("mean", "sum")},
    **{name: Operator(("x",), {"axis": AXIS}) for name in ("softmax", "cumsum", "argmax")},
    # truth
    **{name: _binary() for name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")},
    **{name: Operator(("x", "y")) for name in ("logical_and", "logical_or")},
    "logical_not": _unary(),
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
