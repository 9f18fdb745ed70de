"""Operators that look at each element for itself, and activations."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Chebyshev

from weightpager.graph.graph import DTYPES, Array

_FLAT = 6.0  # from here on erf is 1 in float64
_ERF = Chebyshev.interpolate(np.vectorize(math.erf), 48, domain=[0, _FLAT])  # within 1e-12


def erf(x: Array) -> Array:
    """The error function, within 1e-7, as float32."""
    wide = x.astype(np.float64)
    return np.asarray(np.sign(wide) * _ERF(np.minimum(np.abs(wide), _FLAT)), np.float32)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + exp(-x))``, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)), np.float32)


def gelu(x: Array, *, approximate: str) -> Array:
    """``x`` times the normal distribution's share below it; with tanh, Hendrycks' and Gimpel's approximation."""
    if approximate == "none":
        share = 1 + erf(x * np.float32(math.sqrt(0.5)))
    else:
        share = 1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x))
    return np.asarray(np.float32(0.5) * x * share)


def relu(x: Array) -> Array:
    """``x``, or 0 where it is negative."""
    return np.asarray(np.maximum(x, np.float32(0)))


def silu(x: Array) -> Array:
    """``x * sigmoid(x)``."""
    return x * sigmoid(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "none": lambda x: x,
    "gelu": lambda x: gelu(x, approximate="none"),
    "gelu_tanh": lambda x: gelu(x, approximate="tanh"),
    "relu": relu,
    "silu": silu,
    "tanh": np.tanh,
    "quick_gelu": lambda x: x * sigmoid(np.float32(1.702) * x),
}
"""Activation functions of `linear` and `gated_linear`, by name."""


def _binary(function: Callable[[Array, Array], Array]) -> Callable[..., Array]:
    """Over two values that broadcast, or one and a number of its dtype."""

    def applied(x: Array, y: Array | None, *, scalar: float | None) -> Array:
        return function(x, np.asarray(scalar, x.dtype) if y is None else y)

    return applied


def power(x: Array, *, scalar: float) -> Array:
    """``x`` to the power of a number."""
    return np.asarray(x ** np.asarray(scalar, x.dtype))


def cast(x: Array, *, dtype: str) -> Array:
    """The same values in another dtype: of float32 towards zero to int64; true where not 0 to bool."""
    return x.astype(DTYPES[dtype])


def where(condition: Array, x: Array, y: Array) -> Array:
    """``x`` where the condition is true, else ``y``."""
    return np.where(condition, x, y)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "add": _binary(np.add),
    "subtract": _binary(np.subtract),
    "multiply": _binary(np.multiply),
    "divide": _binary(np.divide),
    "power": power,
    "gelu": gelu,
    "relu": relu,
    "silu": silu,
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
    "where": where,
    "cast": cast,
}
