"""A graph in two: what gives one of its outputs, and what follows."""

from __future__ import annotations

from dataclasses import replace

from weightpager.graph.graph import Graph, GraphInput, GraphOutput, Node, Operand


def split(graph: Graph, name: str, width: int) -> tuple[Graph, Graph]:
    """The part that gives an output, and the part that computes all others from it.

    Args:
        graph: whose other outputs need of the graph's inputs only what this output holds.
        name: of the output, float32 [batch, length, width]; the second part's only input.
        width: of it.

    Raises:
        ValueError: the graph has no such output, or an other one needs more or is the same value.
    """
    at = next((each for each in graph.outputs if each.name == name), None)
    if at is None:
        raise ValueError(f"expected a graph with the output {name!r}, found {[each.name for each in graph.outputs]}")
    others = tuple(each for each in graph.outputs if each.name != name)
    if same := next((each.name for each in others if each.value == at.value), None):
        raise ValueError(f"expected the value of {name!r} as no other output, found it as {same!r}")
    below = replace(graph, nodes=_needed(graph.nodes, {at.value}), outputs=(at,))
    above = tuple(_from(node, at, name) for node in _needed(graph.nodes, {each.value for each in others}, at.value))
    head = replace(graph, inputs=(GraphInput(name, "float32", (*graph.dims, width)),), nodes=above, outputs=others)
    taken = {str(each.key) for node in above for each in node.inputs if each is not None and each.kind == "input"}
    if more := sorted(taken - {name}):
        raise ValueError(f"expected outputs that follow from {name!r} alone, found some that need {', '.join(more)}")
    return below, head


def _needed(nodes: tuple[Node, ...], values: set[str], given: str | None = None) -> tuple[Node, ...]:
    """The nodes that give these values, but for what a given one needs."""
    needed = []
    wanted = values - {given}
    for node in reversed(nodes):
        if wanted.isdisjoint(node.outputs):
            continue
        needed.append(node)
        wanted |= {str(each.key) for each in node.inputs if each is not None and each.kind == "value"} - {given}
    return tuple(reversed(needed))


def _from(node: Node, at: GraphOutput, name: str) -> Node:
    """A node that takes a value as an input."""
    taken = tuple(Operand.input(name) if each == Operand.value(at.value) else each for each in node.inputs)
    return replace(node, inputs=taken)
