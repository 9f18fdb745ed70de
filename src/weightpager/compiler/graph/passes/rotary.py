"""Rotary embeddings, as transformers' modules write them out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightpager.compiler.graph.builder import Draft
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
    """``x * cos + rotate_half(x) * sin`` in one operator; also where the features of a pair stand side by side."""

    def rule(view: View, node: Node) -> Node | None:
        if node.op != "add" or node.inputs[1] is None:
            return None
        for straight, crossed in operand_pairs(node):
            for interleaved in (False, True):
                turned = _turned(view, straight, crossed, interleaved=interleaved)
                if turned is not None:
                    x, turn = turned
                    attributes = {"interleaved": interleaved, "scaling": turn.scaling, "layout": "bhtd"}
                    return Node("rotary", (x, turn.positions, turn.inv_freq), attributes, node.outputs)
        return None

    return rewritten(draft, rule)


def _turned(
    view: View, straight: Operand | None, crossed: Operand | None, *, interleaved: bool
) -> tuple[Operand, _Turn] | None:
    first, second = view.maker(straight, "multiply"), view.maker(crossed, "multiply")
    if first is None or second is None or first.inputs[1] is None or second.inputs[1] is None:
        return None
    rotated, turn_of = (_pairs_turned, _turn_of_pairs) if interleaved else (_half_turned, _turn)
    for x, cosine in operand_pairs(first):
        for half_turned, sine in operand_pairs(second):
            if x is None or rotated(view, half_turned) != x:
                continue
            turn, other = turn_of(view, cosine, "cos"), turn_of(view, sine, "sin")
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


def _pairs_turned(view: View, operand: Operand | None) -> Operand | None:
    """x, of the value that has -x[1], x[0], -x[3], x[2] and so on."""
    sides = _side_by_side(view, operand)
    if sides is None:
        return None
    negated, even = view.maker(sides[0], "negate"), view.maker(sides[1], "slice")
    odd = None if negated is None else view.maker(negated.inputs[0], "slice")
    if even is None or odd is None or even.inputs[0] != odd.inputs[0]:
        return None
    last = len(view.shape(even.inputs[0])) - 1
    wanted = [{"axis": last, "start": start, "end": None, "step": 2} for start in (0, 1)]
    return even.inputs[0] if [even.attributes, odd.attributes] == wanted else None


def _side_by_side(view: View, operand: Operand | None) -> tuple[Operand, Operand] | None:
    """Two values [..., n] whose elements stand in turn, one of each, in this one [..., 2n]."""
    flat = view.maker(operand, "reshape")
    joined = None if flat is None else view.maker(flat.inputs[0], "concat")
    if joined is None or len(joined.inputs) != 2:
        return None
    *before, each, pair = view.shape(Operand.value(joined.output))
    if joined.attributes["axis"] != len(before) + 1 or not isinstance(each, int) or pair != 2:
        return None
    sides = [None if part is None else part.inputs[0] for part in (view.maker(x, "reshape") for x in joined.inputs)]
    if sides[0] is None or sides[1] is None:
        return None
    shapes = [view.shape(side) for side in (*sides, operand)]
    return (sides[0], sides[1]) if shapes == [(*before, each), (*before, each), (*before, 2 * each)] else None


def _turn(view: View, operand: Operand | None, function: str) -> _Turn | None:
    """The angles of a cosine or sine where all of them stand twice, one row behind the other."""
    scaling, angles = _scaled(view, operand, function)
    return _turn_by(view, _row_of_two(view, angles), scaling)


def _turn_of_pairs(view: View, operand: Operand | None, function: str) -> _Turn | None:
    """The same where each angle stands twice, side by side; or each cosine, of the first row of two."""
    scaling, angles = _scaled(view, operand, function)
    if angles is not None:
        return _turn_by(view, _twice(view, angles), scaling)
    row = view.maker(_twice(view, operand), "slice")
    if row is None:
        return None
    *before, size = view.shape(row.inputs[0])
    first = {"axis": len(before), "start": 0, "end": size // 2, "step": 1} if isinstance(size, int) else None
    return _turn(view, row.inputs[0], function) if row.attributes == first else None


def _twice(view: View, operand: Operand | None) -> Operand | None:
    """x, [..., n], of the value [..., 2n] that has each element of x twice, side by side."""
    sides = _side_by_side(view, operand)
    return None if sides is None or sides[0] != sides[1] else sides[0]


def _row_of_two(view: View, operand: Operand | None) -> Operand | None:
    """x, of ``concat(x, x)`` along the last axis."""
    joined = _moved(view, operand)
    if joined is None or joined.op != "concat" or len(joined.inputs) != 2 or joined.inputs[0] != joined.inputs[1]:
        return None
    return joined.inputs[0] if joined.attributes["axis"] == len(view.shape(joined.inputs[0])) - 1 else None


def _scaled(view: View, operand: Operand | None, function: str) -> tuple[float, Operand | None]:
    """A factor, and of what it multiplies the cosine or sine; None if it multiplies something else."""
    scaling = 1.0
    node = _moved(view, operand)
    while node is not None and node.op == "multiply" and (factor := scalar_of(view, node)) is not None:
        scaling *= factor
        node = _moved(view, node.inputs[0])
    return scaling, None if node is None or node.op != function else node.inputs[0]


def _turn_by(view: View, operand: Operand | None, scaling: float) -> _Turn | None:
    """The turn by angles [..., tokens, angles]."""
    angles = _moved(view, operand)
    if angles is not None and angles.op == "permute":  # [batch, angles, tokens] to [batch, tokens, angles]
        angles = _moved(view, angles.inputs[0])
    if angles is None or angles.op != "multiply" or angles.inputs[1] is None:
        return None
    for given, frequencies in operand_pairs(angles):
        positions, inv_freq = _source(view, given), _constant_of(view, frequencies)
        if positions is not None and inv_freq is not None and view.shape(operand)[-1:] == view.shape(inv_freq):
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
