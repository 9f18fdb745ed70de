"""Attention with heads behind tokens, so that nothing is moved around it."""

from __future__ import annotations

from dataclasses import replace

from weightpager.compiler.graph.draft import Draft, Type
from weightpager.compiler.graph.passes.view import View
from weightpager.graph import Node, Operand

_SWAPPED = [0, 2, 1, 3]


def tokens_before_heads(draft: Draft) -> Draft:
    """Where an attention's operands and result are swapped around it, read them as they were."""
    view = View(draft)
    changed: dict[str, Node] = {}
    for node in draft.graph.attentions:
        new = _unswapped(view, node)
        if new is not None:
            changed.update(new)
    return view.finished([changed.get(node.output, node) for node in draft.graph.nodes])


def _unswapped(view: View, node: Node) -> dict[str, Node] | None:
    """What the attention, and the nodes around it, become; by output."""
    users = view.users[Operand.value(node.output)]
    if not users or not all(each.op == "permute" and each.attributes["axes"] == _SWAPPED for each in users):
        return None
    found: dict[str, Node] = {}
    operands: list[Operand | None] = []
    for operand in node.inputs[:3]:
        rotary = view.maker(operand, "rotary")
        swap = view.maker(operand if rotary is None else rotary.inputs[0], "permute")
        if swap is None or swap.attributes["axes"] != _SWAPPED:
            return None
        if rotary is None:
            operands.append(swap.inputs[0])
            continue
        if not view.used_once(rotary):
            return None
        turned = replace(
            rotary, inputs=(swap.inputs[0], *rotary.inputs[1:]), attributes={**rotary.attributes, "layout": "bthd"}
        )
        found[rotary.output] = turned
        operands.append(operand)
    attention = replace(node, inputs=(*operands, node.inputs[3]), attributes={**node.attributes, "layout": "bthd"})
    found[node.output] = attention
    for user in users:  # which moves nothing any more, and goes
        found[user.output] = Node("permute", user.inputs, {"axes": [0, 1, 2, 3]}, user.outputs)
    for name in found:
        operand = Operand.value(name)
        if found[name].op != "permute":
            view.types[operand] = _swapped(view.types[operand])
    return found


def _swapped(type_: Type) -> Type:
    first, second, third, fourth = type_.shape
    return Type((first, third, second, fourth), type_.dtype)
