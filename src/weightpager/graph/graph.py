"""`Graph`: operators in execution order, over inputs, parameters and small constants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

OperandKind = Literal["value", "input", "parameter", "constant"]

OPERAND_KINDS: tuple[OperandKind, ...] = ("value", "input", "parameter", "constant")


@dataclass(frozen=True)
class Operand:
    """Where a node takes something from.

    ``key`` is the name of a value or an input, a parameter's canonical name, or a constant's index.
    """

    kind: OperandKind
    key: str | int

    @classmethod
    def value(cls, name: str) -> Operand:
        return cls("value", name)

    @classmethod
    def input(cls, name: str) -> Operand:
        return cls("input", name)

    @classmethod
    def parameter(cls, name: str) -> Operand:
        return cls("parameter", name)

    @classmethod
    def constant(cls, index: int) -> Operand:
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
        return self.outputs[0]


@dataclass(frozen=True)
class GraphInput:
    """What a call brings: int64 or float32, of sizes and names of the graph's dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphOutput:
    """What a call gives: logits, hidden or features, and the name of the value that it is."""

    name: str
    value: str


@dataclass(frozen=True)
class Graph:
    """A task kind's forward pass, or that from pictures to their features.

    Attributes:
        dims: dimensions that a call states: batch, of texts length, and where rows of features may stand in the place
            of tokens, how many these are.
        nodes: in execution order; every value is defined once, before its use.
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


def split(graph: Graph, name: str, width: int) -> tuple[Graph, Graph]:
    """The part that gives an output, and the part that computes all others from it, as its only input.

    The output is float32 [batch, length, width]; the second part has no other dimensions. A `ValueError` says that the
    graph has no such output, or that an other one needs more of the graph's inputs or is the same value.
    """
    at = next((each for each in graph.outputs if each.name == name), None)
    if at is None:
        raise ValueError(f"expected a graph with the output {name!r}, found {[each.name for each in graph.outputs]}")
    others = tuple(each for each in graph.outputs if each.name != name)
    if same := next((each.name for each in others if each.value == at.value), None):
        raise ValueError(f"expected the value of {name!r} as no other output, found it as {same!r}")
    below = replace(graph, nodes=needed(graph.nodes, {at.value}), outputs=(at,))
    above = tuple(_from(node, at, name) for node in needed(graph.nodes, {each.value for each in others}, at.value))
    dims = graph.dims[:2]
    given = (GraphInput(name, "float32", (*dims, width)),)
    head = replace(graph, dims=dims, inputs=given, nodes=above, outputs=others)
    taken = {str(each.key) for node in above for each in node.inputs if each is not None and each.kind == "input"}
    if more := sorted(taken - {name}):
        raise ValueError(f"expected outputs that follow from {name!r} alone, found some that need {', '.join(more)}")
    return below, head


def needed(nodes: tuple[Node, ...], values: set[str], given: str | None = None) -> tuple[Node, ...]:
    """The nodes that give these values, but for what a given one needs."""
    found = []
    wanted = values - {given}
    for node in reversed(nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        found.append(node)
        wanted |= {str(each.key) for each in node.inputs if each is not None and each.kind == "value"} - {given}
    return tuple(reversed(found))


def _from(node: Node, at: GraphOutput, name: str) -> Node:
    """A node that takes a value as an input."""
    taken = tuple(Operand.input(name) if each == Operand.value(at.value) else each for each in node.inputs)
    return replace(node, inputs=taken)
