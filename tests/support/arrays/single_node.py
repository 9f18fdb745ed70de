"""Graphs of one operator, whose operands come in any strides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand

Arrays = Sequence[Any]


def single_node(
    op: str, operands: Arrays, attributes: Mapping[str, Any], weights: Sequence[int] = (), orders: Arrays = ()
) -> tuple[Graph, dict[str, Any], dict[str, Any]]:
    """A graph of one operator, its inputs and its parameters.

    Args:
        op: the operator.
        operands: arrays, None where one is left out.
        attributes: of the node.
        weights: which operands are parameters.
        orders: of the axes in memory, for each operand; a permutation in front of the operator puts them in place.
    """
    inputs: list[GraphInput] = []
    nodes: list[Node] = []
    given: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    taken: list[Operand | None] = []
    for at, array in enumerate(operands):
        name = f"x{at}"
        if array is None:
            taken.append(None)
        elif at in weights:
            parameters[name] = array
            taken.append(Operand.parameter(name))
        else:
            order = list(orders[at]) if at < len(orders) else list(range(array.ndim))
            given[name] = np.ascontiguousarray(np.transpose(array, order)).reshape([array.shape[i] for i in order])
            inputs.append(GraphInput(name, str(array.dtype), given[name].shape))
            taken.append(Operand.input(name))
            if array.ndim:
                nodes.append(Node("permute", (Operand.input(name),), {"axes": np.argsort(order).tolist()}, (f"p{at}",)))
                taken[-1] = Operand.value(f"p{at}")
    outputs = ("y0", "y1") if op.startswith("add_") else ("y0",)
    nodes.append(Node(op, tuple(taken), attributes, outputs))
    return (
        Graph("test", ("batch",), tuple(inputs), tuple(nodes), tuple(GraphOutput(y, y) for y in outputs)),
        given,
        parameters,
    )
