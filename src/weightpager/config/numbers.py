"""Numbers that a caller states: of Python's types or of numpy's, and never a boolean."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from weightpager.errors import ConfigError, shown


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is a real number; NaN is one, too."""
    return isinstance(value, Real) and not isinstance(value, bool)


def stated_count(value: Any, where: str) -> int:
    """How many there are to be.

    Raises:
        ConfigError: that is no whole number, or below 1; says ``where`` it was stated.
    """
    if not is_whole(value):
        raise ConfigError(f"{where}: expected a whole number, found {shown(value)}")
    if value < 1:
        raise ConfigError(f"{where}: expected at least 1, found {shown(value)}")
    return int(value)
