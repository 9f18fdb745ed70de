"""Passes that put several nodes into one: activations, gates, norms and sums."""

from __future__ import annotations

import math
from dataclasses import replace

from weightpager.compiler.graph.builder import Draft
from weightpager.compiler.graph.passes.view import View, operand_pairs, rewritten, scalar_of
from weightpager.graph import Node, Operand


def fuse_gelus(draft: Draft) -> Draft:
    """The tanh approximation of a GELU, written out as GPT-2's and ALBERT's modules have it."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "multiply" or node.inputs[1] is None:
            return None
        for half, risen in operand_pairs(node):
            x = _scaled(view, half, 0.5)
            plus_one = view.maker(risen, "add")
            if x is None or plus_one is None or scalar_of(view, plus_one) != 1.0:
                continue
            tanh = view.maker(plus_one.inputs[0], "tanh")
            if tanh is None:
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
        for gate, up in operand_pairs(node):
            activation = view.maker(gate)
            if activation is None or _activation(activation) is None:
                continue
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


def fuse_activations(draft: Draft) -> Draft:
    """A linear layer's activation in the layer."""

    def rule(view: View, node: Node) -> Node | None:
        activation = _activation(node)
        before = view.maker(node.inputs[0], "linear") if activation is not None else None
        if before is None or before.attributes["activation"] != "none" or not view.used_once(before):
            return None
        return replace(before, attributes={"activation": activation}, outputs=node.outputs)

    return rewritten(draft, rule)


def fuse_rms_norms(draft: Draft) -> Draft:
    """``x * rsqrt(mean(x²) + epsilon) * weight`` in one operator, also with ``1 + weight``, or without a weight."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "multiply" or node.inputs[1] is None:
            return None
        bare = _bare(view, node)
        if bare is not None:
            return bare
        for weight, normed in operand_pairs(node):
            before = view.maker(normed, "rms_norm")
            offset, weight = _weight(view, weight)
            if before is None or before.inputs[1] is not None or weight is None or not view.used_once(before):
                continue
            if view.shape(weight) == view.shape(before.inputs[0])[-1:]:
                attributes = {**before.attributes, "offset": offset}
                return Node("rms_norm", (before.inputs[0], weight), attributes, node.outputs)
        return None

    return rewritten(draft, rule)


def _bare(view: View, node: Node) -> Node | None:
    """``x * rsqrt(mean(x²) + epsilon)``, also with a power of −0.5."""
    for x, factor in operand_pairs(node):
        root = view.maker(factor, "rsqrt", "power")
        if x is None or root is None or (root.op == "power" and root.attributes["scalar"] != -0.5):
            continue
        total = view.maker(root.inputs[0], "add")
        epsilon = None if total is None else scalar_of(view, total)
        mean = None if total is None else view.maker(total.inputs[0], "mean")
        square = None if mean is None else view.maker(mean.inputs[0], "power", "multiply")
        if mean is None or square is None or not isinstance(epsilon, float) or epsilon < 0:
            continue
        last = mean.attributes["axes"] == [len(view.shape(x)) - 1] and mean.attributes["keep"]
        squared = square.attributes["scalar"] == 2.0 if square.op == "power" else square.inputs[1] == x
        if last and squared and square.inputs[0] == x:
            return Node("rms_norm", (x, None), {"epsilon": epsilon, "offset": 0}, node.outputs)
    return None


def _weight(view: View, operand: Operand | None) -> tuple[int, Operand | None]:
    """What is added to a parameter, 0 or 1, and the parameter."""
    if operand is None or operand.kind == "parameter":
        return 0, operand
    total = view.maker(operand, "add")
    if total is None or scalar_of(view, total) != 1.0:
        return 0, None
    given = total.inputs[0]
    return 1, given if given is not None and given.kind == "parameter" else None


def fuse_sums(draft: Draft) -> Draft:
    """A sum and its norm in one operator, which gives both."""
    view = View(draft)
    nodes: list[Node] = []
    gone: set[str] = set()
    for node in draft.graph.nodes:
        if node.output in gone:
            continue
        norm = _norm_of(view, node)
        if norm is None:
            nodes.append(node)
            continue
        gone.add(norm.output)
        inputs = (*node.inputs, *norm.inputs[1:])
        nodes.append(replace(norm, op=f"add_{norm.op}", inputs=inputs, outputs=(node.output, norm.output)))
    return view.finished(nodes)


def _norm_of(view: View, node: Node) -> Node | None:
    """The norm of a sum of two values of one shape, if it needs nothing that comes later."""
    if node.op != "add" or node.inputs[1] is None or view.shape(node.inputs[0]) != view.shape(node.inputs[1]):
        return None
    for user in view.users[Operand.value(node.output)]:
        of_sum = user.op in ("layer_norm", "rms_norm") and user.inputs[0] == Operand.value(node.output)
        if of_sum and all(each is None or each.kind == "parameter" for each in user.inputs[1:]):
            return user
    return None
