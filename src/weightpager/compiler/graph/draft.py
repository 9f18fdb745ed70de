"""`Draft`: a graph that is being made, with what is known of its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightpager.graph import Graph, Operand

Size = int | str | None
"""The size of an axis: a number, a dimension that a call states, or unknown."""


@dataclass(frozen=True)
class Type:
    """What is known of a value: the sizes of its axes, and its dtype."""

    shape: tuple[Size, ...]
    dtype: str


@dataclass(frozen=True)
class Draft:
    """A graph, and the types of its nodes' values by name.

    Attributes:
        graph: so far.
        types: of values; of inputs, parameters and constants by their operand.
    """

    graph: Graph
    types: Mapping[Operand, Type]
