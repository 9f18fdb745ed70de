"""RMS norms written out, and norms of sums."""

from __future__ import annotations

from dataclasses import replace

from weightpager.compiler.graph.draft import Draft
from weightpager.compiler.graph.passes.view import View, operand_pairs, rewritten, scalar_of
from weightpager.graph import Node, Operand


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
