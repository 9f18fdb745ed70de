"""`Graph`: operators in execution order, over inputs, parameters and small constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OperandKind = Literal["value", "input", "parameter", "constant"]

OPERAND_KINDS: tuple[OperandKind, ...] = ("value", "input", "parameter", "constant")


@dataclass(frozen=True)
class Operand:
    """Where a node takes something from.

    Attributes:
        kind: an earlier node's value, an input of the graph, a parameter of the bundle, or a constant of the graph.
        key: its name (a parameter's is canonical); of a constant its index.
    """

    kind: OperandKind
    key: str | int

    @classmethod
    def value(cls, name: str) -> Operand:
        """An earlier node's output."""
        return cls("value", name)

    @classmethod
    def input(cls, name: str) -> Operand:
        """An input of the graph."""
        return cls("input", name)

    @classmethod
    def parameter(cls, name: str) -> Operand:
        """A parameter of the bundle, by canonical name."""
        return cls("parameter", name)

    @classmethod
    def constant(cls, index: int) -> Operand:
        """A constant of the graph."""
        return cls("constant", index)


@dataclass(frozen=True)
class Node:
    """One operator's use.

    Attributes:
        op: its name in `OPERATORS`.
        inputs: its operands; None for an optional one that is left out.
        attributes: exactly those that the operator has; lists for shapes and axes.
        outputs: names of the values that it gives.
    """

    op: str
    inputs: tuple[Operand | None, ...]
    attributes: Mapping[str, Any]
    outputs: tuple[str, ...]

    @property
    def output(self) -> str:
        """The only, or the first, value's name."""
        return self.outputs[0]


@dataclass(frozen=True)
class GraphInput:
    """What a call brings.

    Attributes:
        name: of the input.
        dtype: int64 or float32.
        shape: sizes, and names of the graph's dimensions.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphOutput:
    """What a call gives.

    Attributes:
        name: logits or hidden.
        value: name of the value that it is.
    """

    name: str
    value: str


@dataclass(frozen=True)
class Graph:
    """A task kind's forward pass.

    Attributes:
        kind: of tasks.
        dims: dimensions that a call states: batch, and of texts length.
        inputs: what a call brings.
        nodes: in execution order; every value is defined once, before its use.
        outputs: what a call gives.
        constants: small arrays of float32, int64 or bool.
    """

    kind: str
    dims: tuple[str, ...]
    inputs: tuple[GraphInput, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[GraphOutput, ...]
    constants: tuple[Array, ...] = ()

    @property
    def attentions(self) -> tuple[Node, ...]:
        """The nodes that may keep keys and values of earlier tokens, by index."""
        return tuple(node for node in self.nodes if node.op == "attention")

    def parameters(self) -> Iterator[str]:
        """Canonical names of all parameters that it takes, each once, in the order of their first use."""
        names = (
            operand.key
            for node in self.nodes
            for operand in node.inputs
            if operand is not None and operand.kind == "parameter"
        )
        return iter(dict.fromkeys(map(str, names)))


DTYPES = {"float32": np.float32, "int64": np.int64, "bool": np.bool_}
"""The numpy dtype of each dtype that a value may have, by name."""
