"""A graph without the half-layers that a task has dropped: what they would add isn't computed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from weightpager.graph.graph import Graph, GraphOutput, Node, Operand, needed
from weightpager.graph.operators import WEIGHTS

_SHAPES = ("reshape", "permute", "slice", "expand", "gather", "take", "rotary", "mean", "sum", "cumsum")
_KEPT = frozenset((*_SHAPES, "negate", "relu", "gelu", "silu", "tanh", "sqrt", "sin"))
"""Operators that give zeros where their first operand is zeros, whatever their others are."""


def without(graph: Graph, weights: Collection[str]) -> Graph:
    """The graph of a task for which these weights' products are zero, their biases included.

    Zeros are followed to the sums that they would be added to: each becomes its other operand, and what no output needs
    any more goes, inputs too. So a half-layer without its weights isn't computed, and its attention keeps no keys and
    values. Indices of attentions stay.

    Raises:
        ValueError: zeros reach anything but a sum that is needed; names it.
    """
    return _reduced(graph, weights)[0] if weights else graph


def replaced(graph: Graph, weights: Collection[str]) -> dict[str, str]:
    """The sums that are others in `without`, and what these are: value → value.

    A sum that is larger than what it becomes would be lost in part. Shapes need parameters, which a graph hasn't, so
    who has them compares the two: they must be equal.
    """
    return _reduced(graph, weights)[1] if weights else {}


def _reduced(graph: Graph, weights: Collection[str]) -> tuple[Graph, dict[str, str]]:
    """The graph, and of the sums in it what they are now."""
    found = _Zeros(frozenset(weights))
    nodes = [found.rewritten(node) for node in graph.nodes]
    outputs = []
    for output in graph.outputs:
        value = found.now(Operand.value(output.value))
        if value is None or value.kind != "value":
            raise ValueError(f"expected half-layers whose loss leaves {output.name!r} something, found none left of it")
        outputs.append(GraphOutput(output.name, str(value.key)))
    left = needed(tuple(node for node in nodes if node is not None), {each.value for each in outputs})
    for node in left:
        if (reason := found.stuck.get(node.output)) is not None:
            raise ValueError(f"expected half-layers that are added to others, found their zeros in {reason}")
    sums = found.sums_of(graph, left)
    taken = {each for node in left for each in node.inputs} | {Operand.value(each.value) for each in outputs}
    left = tuple(_without_norm(node) if Operand.value(node.outputs[-1]) not in taken else node for node in left)
    inputs = tuple(each for each in graph.inputs if Operand.input(each.name) in taken)
    return replace(graph, inputs=inputs, nodes=left, outputs=tuple(outputs)), sums


def _without_norm(node: Node) -> Node:
    """A node whose last value nobody needs: of a sum and its norm the sum."""
    if node.op not in ("add_layer_norm", "add_rms_norm"):
        return node
    return Node("add", node.inputs[:2], {"scalar": None}, node.outputs[:1])


@dataclass(frozen=True)
class _Zeros:
    """What is known of a graph's values while its nodes are gone through.

    Attributes:
        weights: parameters that give zeros.
        zero: names of values that are zeros.
        same: values that are others now.
        stuck: values whose node needs zeros that aren't there, with what to call it.
        varying: values that depend on an input; others, such as a constant row, may be smaller than a sum with them.
    """

    weights: frozenset[str]
    zero: set[str] = field(default_factory=set)
    same: dict[str, Operand] = field(default_factory=dict)
    stuck: dict[str, str] = field(default_factory=dict)
    varying: set[str] = field(default_factory=set)

    def now(self, operand: Operand | None) -> Operand | None:
        """What an operand is now; None for zeros, too."""
        if operand is None or operand.kind != "value":
            return operand
        name = str(operand.key)
        return None if name in self.zero else self.same.get(name, operand)

    def sums_of(self, graph: Graph, left: Collection[Node]) -> dict[str, str]:
        """Of the values that are others now, those which nodes that are left, or outputs, took."""
        ends = {node.outputs[-1] for node in left}
        before = [node for node in graph.nodes if node.outputs[-1] in ends]
        taken = {str(each.key) for node in before for each in node.inputs if each is not None and each.kind == "value"}
        taken |= {name for node in before for name in node.outputs} | {output.value for output in graph.outputs}
        return {name: str(other.key) for name, other in self.same.items() if name in taken}

    def rewritten(self, node: Node) -> Node | None:
        """A node over what its operands are now; None where nothing is left to compute."""
        if any(each is not None and (each.kind == "input" or self._is_whole(each)) for each in node.inputs):
            self.varying.update(node.outputs)
        if self._drops(node):
            self.zero.update(node.outputs)
            return None
        zero = [each is not None and each.kind == "value" and each.key in self.zero for each in node.inputs]
        after = replace(node, inputs=tuple(map(self.now, node.inputs)))
        if not any(zero):
            return after
        if self._gives_zero(node, zero):
            self.zero.update(node.outputs)
            return None
        if node.op in ("add", "add_layer_norm", "add_rms_norm") and (other := self._other(after, zero)) is not None:
            self.same[node.output] = other
            if node.op == "add":
                return None
            inputs = (other, *after.inputs[2:])
            return replace(node, op=node.op.removeprefix("add_"), inputs=inputs, outputs=node.outputs[1:])
        if node.op == "subtract" and node.inputs[1] is not None and not zero[0] and self._is_whole(after.inputs[0]):
            assert after.inputs[0] is not None
            self.same[node.output] = after.inputs[0]
            return None
        for name in node.outputs:
            self.stuck[name] = f"{node.op} {node.output}"
        return after

    def _drops(self, node: Node) -> bool:
        places = WEIGHTS.get(node.op, ()) if node.op != "embedding" else ()
        return any(
            each is not None and each.kind == "parameter" and each.key in self.weights
            for each in (node.inputs[place] for place in places)
        )

    def _gives_zero(self, node: Node, zero: list[bool]) -> bool:
        """Whether a node gives zeros where these of its operands are zeros."""
        op = node.op
        if op in _KEPT:
            return zero[0]
        if op == "attention":
            return zero[2]
        if op in ("multiply", "matmul", "gated_linear"):
            return any(zero[:2])
        if op == "divide":
            return zero[0] and not zero[-1]
        if op == "power":
            return bool(node.attributes["scalar"] > 0)
        if op in ("linear", "layer_norm") and node.inputs[2] is not None:
            return False
        if op == "linear":
            return zero[0]
        if op in ("layer_norm", "rms_norm"):
            return zero[0] and bool(node.attributes["epsilon"] > 0)
        if op in ("add", "subtract"):
            return node.inputs[1] is not None and all(zero)
        if op == "add_rms_norm":
            return all(zero[:2]) and bool(node.attributes["epsilon"] > 0)
        return op == "concat" and all(zero)

    def _other(self, node: Node, zero: list[bool]) -> Operand | None:
        """What zeros are added to, if that depends on an input: than all others the sum may be larger."""
        if all(zero[:2]) or node.inputs[1 if zero[0] else 0] is None:
            return None
        other = node.inputs[1 if zero[0] else 0]
        return other if self._is_whole(other) else None

    def _is_whole(self, operand: Operand | None) -> bool:
        return operand is not None and operand.kind == "value" and operand.key in self.varying
