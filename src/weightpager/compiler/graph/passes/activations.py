"""Activations written out, and those that follow a linear layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from weightpager.compiler.graph.draft import Draft
from weightpager.compiler.graph.passes.view import View, operand_pairs, rewritten, scalar_of
from weightpager.graph import Node, Operand


def fuse_gelus(draft: Draft) -> Draft:
    """The tanh approximation of a GELU, written out as GPT-2's and ALBERT's modules have it."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "multiply" or node.inputs[1] is None:
            return None
        for half, risen in operand_pairs(node):
            x = _scaled(view, half, 0.5)
            tanh = view.maker(_raised(view, risen, 1.0), "tanh")
            if x is None or tanh is None:
                continue
            inner = _scaled(view, tanh.inputs[0], math.sqrt(2 / math.pi))
            total = view.maker(inner, "add")
            if total is None or total.inputs[1] is None:
                continue
            for first, second in operand_pairs(total):
                cube = view.maker(_scaled(view, second, 0.044715), "power")
                if first == x and cube is not None and cube.inputs[0] == x and cube.attributes["scalar"] == 3.0:
                    return Node("gelu", (x,), {"approximate": "tanh"}, node.outputs)
        return None

    return rewritten(draft, rule)


def _scaled(view: View, operand: Operand | None, scalar: float) -> Operand | None:
    node = view.maker(operand, "multiply")
    found = None if node is None else scalar_of(view, node)
    near = found is not None and math.isclose(found, scalar, rel_tol=1e-6)
    return node.inputs[0] if node is not None and near else None


def _raised(view: View, operand: Operand | None, scalar: float) -> Operand | None:
    node = view.maker(operand, "add")
    return node.inputs[0] if node is not None and scalar_of(view, node) == scalar else None


def _activation(node: Node) -> str | None:
    """The name of a node's activation, as linear layers know it."""
    if node.op == "gelu":
        return "gelu" if node.attributes["approximate"] == "none" else "gelu_tanh"
    return node.op if node.op in ("relu", "silu", "tanh") else None


def fuse_gated(draft: Draft) -> Draft:
    """``activation(x · gateᵀ) * (x · upᵀ)`` in one operator."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "multiply" or node.inputs[1] is None:
            return None
        for gate, up in _gates(view, node):
            activation = view.maker(gate)
            assert activation is not None
            first, second = view.maker(activation.inputs[0], "linear"), view.maker(up, "linear")
            if first is None or second is None or not all(map(view.used_once, (activation, first, second))):
                continue
            plain = all(each.attributes["activation"] == "none" and each.inputs[2] is None for each in (first, second))
            same = view.shape(first.inputs[1]) == view.shape(second.inputs[1]) and first.inputs[0] == second.inputs[0]
            if plain and same:
                inputs = (first.inputs[0], first.inputs[1], second.inputs[1])
                return Node("gated_linear", inputs, {"activation": _activation(activation)}, node.outputs)
        return None

    return rewritten(draft, rule)


def _gates(view: View, node: Node) -> Iterator[tuple[Operand | None, Operand | None]]:
    for gate, up in operand_pairs(node):
        made = view.maker(gate)
        if made is not None and _activation(made) is not None:
            yield gate, up


def fuse_activations(draft: Draft) -> Draft:
    """A linear layer's activation in the layer."""

    def rule(view: View, node: Node) -> Node | None:
        activation = _activation(node)
        before = view.maker(node.inputs[0], "linear") if activation is not None else None
        if before is None or before.attributes["activation"] != "none" or not view.used_once(before):
            return None
        return replace(before, attributes={"activation": activation}, outputs=node.outputs)

    return rewritten(draft, rule)
