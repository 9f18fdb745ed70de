"""Rotary embeddings, as transformers' modules write them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightpager.compiler.graph.draft import Draft
from weightpager.compiler.graph.passes.view import View, operand_pairs, rewritten, scalar_of
from weightpager.graph import Node, Operand

_UNMOVED = ("reshape", "expand", "cast")
"""What stands between a position and its angle's cosine, and changes no number."""


@dataclass(frozen=True)
class _Turn:
    """The angles by which features are turned: positions times frequencies; ``scaling`` is of the cosines."""

    positions: Operand
    inv_freq: Operand
    scaling: float


def fuse_rotary(draft: Draft) -> Draft:
    """``x * cos + rotate_half(x) * sin`` in one operator."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "add" or node.inputs[1] is None:
            return None
        for straight, crossed in operand_pairs(node):
            turned = _turned(view, straight, crossed)
            if turned is not None:
                x, turn = turned
                attributes = {"interleaved": False, "scaling": turn.scaling, "layout": "bhtd"}
                return Node("rotary", (x, turn.positions, turn.inv_freq), attributes, node.outputs)
        return None

    return rewritten(draft, rule)


def _turned(view: View, straight: Operand | None, crossed: Operand | None) -> tuple[Operand, _Turn] | None:
    first, second = view.maker(straight, "multiply"), view.maker(crossed, "multiply")
    if first is None or second is None or first.inputs[1] is None or second.inputs[1] is None:
        return None
    for x, cosine in operand_pairs(first):
        for half_turned, sine in operand_pairs(second):
            if x is None or _half_turned(view, half_turned) != x:
                continue
            turn, other = _turn(view, cosine, "cos"), _turn(view, sine, "sin")
            if turn is not None and turn == other and _fits(view, x, turn):
                return x, turn
    return None


def _fits(view: View, x: Operand, turn: _Turn) -> bool:
    """Whether x is [batch, heads, tokens, features], and there is an angle for each pair of features."""
    shape, count = view.shape(x), view.shape(turn.inv_freq)[0]
    tokens = view.shape(turn.positions)
    return len(shape) == 4 and isinstance(count, int) and shape[3] == 2 * count and tokens[-1] == shape[2]


def _half_turned(view: View, operand: Operand | None) -> Operand | None:
    """x, of ``concat(-x[half:], x[:half])``."""
    joined = view.maker(operand, "concat")
    if joined is None or len(joined.inputs) != 2:
        return None
    negated, front = view.maker(joined.inputs[0], "negate"), view.maker(joined.inputs[1], "slice")
    back = None if negated is None else view.maker(negated.inputs[0], "slice")
    if front is None or back is None or front.inputs[0] != back.inputs[0]:
        return None
    shape = view.shape(front.inputs[0])
    last = len(shape) - 1
    if not isinstance(shape[last], int) or joined.attributes["axis"] != last:
        return None
    half = int(shape[last] or 0) // 2
    wanted = [(0, half), (half, None)]
    found = [(each.attributes["start"], each.attributes["end"]) for each in (front, back)]
    steps = all(each.attributes["axis"] == last and each.attributes["step"] == 1 for each in (front, back))
    return front.inputs[0] if steps and found == wanted else None


def _turn(view: View, operand: Operand | None, function: str) -> _Turn | None:
    """The angles that a cosine or sine is of."""
    scaling = 1.0
    node = _moved(view, operand)
    while node is not None and node.op == "multiply" and (factor := scalar_of(view, node)) is not None:
        scaling *= factor
        node = _moved(view, node.inputs[0])
    if node is None or node.op != function:
        return None
    joined = _moved(view, node.inputs[0])
    if joined is None or joined.op != "concat" or len(joined.inputs) != 2 or joined.inputs[0] != joined.inputs[1]:
        return None
    if joined.attributes["axis"] != len(view.shape(Operand.value(joined.output))) - 1:
        return None
    angles = _moved(view, joined.inputs[0])
    if angles is not None and angles.op == "permute":  # [batch, angles, tokens] to [batch, tokens, angles]
        angles = _moved(view, angles.inputs[0])
    if angles is None or angles.op != "multiply" or angles.inputs[1] is None:
        return None
    for given, frequencies in operand_pairs(angles):
        positions, inv_freq = _source(view, given), _constant_of(view, frequencies)
        if positions is not None and inv_freq is not None:
            return _Turn(positions, inv_freq, scaling)
    return None


def _moved(view: View, operand: Operand | None) -> Node | None:
    """The node behind what changes no number."""
    node = view.maker(operand)
    while node is not None and node.op in _UNMOVED:
        node = view.maker(node.inputs[0])
    return node


def _source(view: View, operand: Operand | None) -> Operand | None:
    """Whole numbers [batch or 1, tokens] behind what changes no number."""
    while operand is not None:
        type_ = view.types[operand]
        if type_.dtype == "int64" and len(type_.shape) == 2:
            return operand
        node = view.maker(operand, *_UNMOVED)
        operand = None if node is None else node.inputs[0]
    return None


def _constant_of(view: View, operand: Operand | None) -> Operand | None:
    """Frequencies [angles]: a constant behind what changes no number."""
    while operand is not None and operand.kind == "value":
        node = view.maker(operand, *_UNMOVED)
        operand = None if node is None else node.inputs[0]
    values = view.value_of(operand)
    if values is None or values.dtype != np.float32 or values.size != max(values.shape, default=0):
        return None
    flat = values.reshape(-1)
    for at, each in enumerate(view.constants):
        if each.shape == flat.shape and each.dtype == flat.dtype and np.array_equal(each, flat):
            return Operand.constant(at)
    return view.constant(flat)


def fuse_partial_rotary(draft: Draft) -> Draft:
    """The leading features turned, and the others joined to them as they were: `rotary` leaves them anyway."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "concat" or len(node.inputs) != 2:
            return None
        turned, rest = view.maker(node.inputs[0], "rotary"), view.maker(node.inputs[1], "slice")
        front = None if turned is None else view.maker(turned.inputs[0], "slice")
        if turned is None or rest is None or front is None or front.inputs[0] != rest.inputs[0]:
            return None
        last = len(view.shape(front.inputs[0])) - 1
        end = front.attributes["end"]
        at = all(each["axis"] == last and each["step"] == 1 for each in (front.attributes, rest.attributes))
        whole = front.attributes["start"] == 0 and rest.attributes["start"] == end and rest.attributes["end"] is None
        if not at or not whole or node.attributes["axis"] != last:
            return None
        return Node("rotary", (front.inputs[0], *turned.inputs[1:]), turned.attributes, node.outputs)

    return rewritten(draft, rule)
