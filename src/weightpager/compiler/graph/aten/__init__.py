"""torch's operators in a graph's: one function for each, in tables by name.

A function takes the builder, the traced node, and its arguments: values, sizes, numbers, lists of them.
"""

from collections.abc import Callable, Mapping
from typing import Any

from weightpager.compiler.graph.aten import elements, products, shapes

TRANSLATIONS: Mapping[str, Callable[..., Any]] = {
    **elements.TRANSLATIONS,
    **products.TRANSLATIONS,
    **shapes.TRANSLATIONS,
}
"""torch's name → its translation."""

__all__ = ["TRANSLATIONS"]
