"""What an operator's attribute may be: kinds of JSON values, each with its bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_AXES = 8
"""Axes of a value."""

MOST_SIZE = 2**31 - 1
"""The largest size of an axis, and the largest whole number in a graph except an index of 64 bits."""

DIMENSIONS = ("batch", "length")
"""Sizes that each call states."""


_LARGEST = 3.4028234663852886e38  # of float32


@dataclass(frozen=True)
class AttributeKind:
    """A kind of values.

    Attributes:
        words: what is expected, for errors.
        accepts: whether a JSON value is one.
    """

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
    """One of these words."""
    return AttributeKind(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def whole(least: int, most: int = MOST_SIZE) -> AttributeKind:
    """An integer within bounds."""
    return AttributeKind(f"an integer from {least} to {most}", lambda value: is_whole(value, least, most))


def pair(least: int, most: int = 2**12) -> AttributeKind:
    """Two integers within bounds, of height and width."""
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
SHAPE = AttributeKind("a list of sizes, batch, length, or one -1", lambda value: _is_shape(value, 1))
KEPT_SHAPE = AttributeKind("a list of sizes, batch, length, or -1", lambda value: _is_shape(value, MOST_AXES))
FULL_SHAPE = AttributeKind("a list of sizes, batch, or length", lambda value: _is_shape(value, 0))
BOUND = AttributeKind("an integer, batch, or length", lambda value: is_size(value) or is_whole(value, -MOST_SIZE))
OPEN_BOUND = AttributeKind(f"{BOUND.words}, or null", lambda value: value is None or BOUND.accepts(value))
STEP = whole(1)
ACTIVATION = choice("none", "gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu")
DTYPE = choice("float32", "int64", "bool")
LAYOUT = choice("bhtd", "bthd")
