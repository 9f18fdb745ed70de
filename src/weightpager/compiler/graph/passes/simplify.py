"""What needs no field's knowledge: constants, masks, reshapes, values that nobody uses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from weightpager.compiler.graph.builder import Draft, Type
from weightpager.compiler.graph.passes.view import View, rewritten
from weightpager.graph import Graph, GraphOutput, Node, Operand
from weightpager.graph.operators import DIMENSIONS
from weightpager.graph.reference import FUNCTIONS
from weightpager.graph.validate import MOST_CONSTANT_BYTES

_SAME_EVERYWHERE = ("expand", "reshape", "slice", "permute", "gather", "cast", "concat")
"""Operators whose values are all equal if those of their first operand are."""


def without_unused(draft: Draft) -> Draft:
    """Only nodes and constants that an output needs; values and constants numbered from 0 on."""
    graph = draft.graph
    needed = {Operand.value(each.value) for each in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(Operand.value(name) in needed for name in node.outputs):
            kept.append(node)
            needed.update(filter(None, node.inputs))
    kept.reverse()
    names = [Operand.value(name) for node in kept for name in node.outputs]
    used = [each for each in map(Operand.constant, range(len(graph.constants))) if each in needed]
    new = {old: Operand.value(f"v{at}") for at, old in enumerate(names)}
    new |= {old: Operand.constant(at) for at, old in enumerate(used)}
    nodes = tuple(
        replace(
            node,
            inputs=tuple(None if each is None else new.get(each, each) for each in node.inputs),
            outputs=tuple(str(new[Operand.value(name)].key) for name in node.outputs),
        )
        for node in kept
    )
    outputs = tuple(GraphOutput(each.name, str(new[Operand.value(each.value)].key)) for each in graph.outputs)
    constants = tuple(graph.constants[int(each.key)] for each in used)
    types = {
        new.get(operand, operand): type_
        for operand, type_ in draft.types.items()
        if operand in new or operand.kind in ("input", "parameter")
    }
    return Draft(Graph(graph.kind, graph.dims, graph.inputs, nodes, outputs, constants), types)


def fold_constants(draft: Draft) -> Draft:
    """What depends on constants alone is computed now, where it stays small."""

    def rule(view: View, node: Node) -> Operand | None:
        values = [view.value_of(each) for each in node.inputs]
        sized = any(each in DIMENSIONS for each in _sizes(node))
        if sized or len(node.outputs) > 1 or any(each is None for each in values):
            return None
        type_ = view.types[Operand.value(node.output)]
        if node.op in ("attention", "full") or _bytes(type_) > MOST_CONSTANT_BYTES // 4:
            return None
        return view.constant(np.asarray(FUNCTIONS[node.op](*values, **node.attributes)))

    return rewritten(draft, rule)


def _sizes(node: Node) -> list[object]:
    found: list[object] = []
    for value in node.attributes.values():
        found += value if isinstance(value, list) else [value]
    return found


def _bytes(type_: Type) -> int:
    sizes = [each if isinstance(each, int) else 2**31 for each in type_.shape]
    return 8 * int(np.prod(sizes, dtype=np.float64))


def look_up_equal_ids_once(draft: Draft) -> Draft:
    """An embedding of ids that are all the same number is one row, where what uses it broadcasts."""
    equal: dict[Operand, int] = {}

    def rule(view: View, node: Node) -> Node | None:
        here = Operand.value(node.output)
        if node.op in _SAME_EVERYWHERE and node.inputs:
            first = node.inputs[0]
            values = view.value_of(first)
            if first in equal:
                equal[here] = equal[first]
            elif values is not None and values.size and values.dtype == np.int64 and (values == values.flat[0]).all():
                equal[here] = int(values.flat[0])
            if node.op == "concat" and len({_known(view, equal, each) for each in node.inputs}) > 1:
                equal.pop(here, None)
        if node.op == "full" and node.attributes["dtype"] == "int64":
            equal[here] = node.attributes["value"]
        if node.op != "embedding" or node.inputs[1] not in equal or not _only_added(view, here):
            return None
        shape = (1,) * (len(view.shape(here)) - 1)
        ids = view.constant(np.full(shape, equal[node.inputs[1]], np.int64))
        view.types[here] = Type((*shape, view.shape(here)[-1]), "float32")
        return replace(node, inputs=(node.inputs[0], ids))

    return rewritten(draft, rule)


def _known(view: View, equal: dict[Operand, int], operand: Operand | None) -> int | None:
    values = view.value_of(operand)
    if values is not None and values.size and (values == values.flat[0]).all():
        return int(values.flat[0])
    return None if operand is None else equal.get(operand)


def _only_added(view: View, value: Operand) -> bool:
    """Whether a value is only added to values of its own shape, which broadcasts."""
    for user in view.users[value]:
        others = [each for each in user.inputs if each != value]
        same = len(others) == 1 and others[0] is not None and view.shape(others[0]) == view.shape(value)
        if user.op != "add" or not same:
            return False
    return value.key not in view.results


def fold_masks(draft: Draft) -> Draft:
    """An attention reads the mask as it is given: whole numbers that aren't 0 are true."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "attention":
            return None
        mask = node.inputs[3]
        made = view.maker(mask, "cast", "not_equal", "reshape")
        while made is not None:
            compared = made.op == "not_equal" and made.attributes["scalar"] != 0
            same = made.inputs[0] is not None and view.types[made.inputs[0]].shape == view.types[_first(made)].shape
            if compared or not same or view.types[_given(made)].dtype == "float32":
                break
            mask = made.inputs[0]
            made = view.maker(mask, "cast", "not_equal", "reshape")
        return replace(node, inputs=(*node.inputs[:3], mask))

    return rewritten(draft, rule)


def _first(node: Node) -> Operand:
    return Operand.value(node.output)


def _given(node: Node) -> Operand:
    assert node.inputs[0] is not None
    return node.inputs[0]


def join_moves(draft: Draft) -> Draft:
    """A reshape of a reshape is one; what moves nothing, or multiplies by 1, goes."""

    def rule(view: View, node: Node) -> Node | Operand | None:
        if node.op in ("multiply", "divide") and node.attributes["scalar"] == 1:
            return node.inputs[0]
        if node.op == "permute" and node.attributes["axes"] == sorted(node.attributes["axes"]):
            return node.inputs[0]
        if node.op != "reshape":
            return None
        first = view.maker(node.inputs[0], "reshape")
        given = node.inputs[0] if first is None else first.inputs[0]
        if given is not None and view.shape(given) == view.shape(Operand.value(node.output)):
            return given if None not in view.shape(given) else None
        return None if first is None else replace(node, inputs=(given,))

    return rewritten(draft, rule)


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
            type_ = view.types[operand]
            first, second, third, fourth = type_.shape
            view.types[operand] = Type((first, third, second, fourth), type_.dtype)
    return found
