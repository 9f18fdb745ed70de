"""Rotary embeddings, as transformers' modules write them out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.compiler.graph.builder import Draft, Size, Type, stated
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


def _source(view: View, operand: Operand | None, axes: int = 2) -> Operand | None:
    """Whole numbers of so many axes, [batch or 1, tokens] where there are two, behind what changes no number."""
    while operand is not None:
        type_ = view.types[operand]
        if type_.dtype == "int64" and len(type_.shape) == axes:
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
    return _known(view, values.reshape(-1))


def _known(view: View, flat: npt.NDArray[Any]) -> Operand:
    """A constant, which may be there already."""
    for at, each in enumerate(view.constants):
        if each.shape == flat.shape and each.dtype == flat.dtype and np.array_equal(each, flat):
            return Operand.constant(at)
    return view.constant(flat)


@dataclass(frozen=True)
class _Sections:
    """The angles where a token has several positions, each of which turns a section of the features.

    Attributes:
        positions: int64, of which the last axis is 1.
        axis: along which a token's positions lie.
        sections: which of them each angle is of.
        frequencies: what that is multiplied by.
        scaling: of the cosines.
    """

    positions: Operand
    axis: int
    sections: tuple[int, ...]
    frequencies: tuple[float, ...]
    scaling: float


def fuse_rotary_of_sections(draft: Draft) -> Draft:
    """`fuse_rotary` where a token has several positions, and its features sections: Qwen2-VL's rows and columns."""
    view, nodes, made = View(draft), list[Node](), dict[_Sections, Operand]()

    def emit(op: str, inputs: tuple[Operand, ...], attributes: dict[str, Any], shape: tuple[Size, ...]) -> Operand:
        name = f"v{len(draft.graph.nodes) + len(view.types)}"  # no other value's, and renumbered in the end
        dtype = view.types[inputs[0]].dtype
        nodes.append(Node(op, inputs, attributes, (name,)))
        view.types[Operand.value(name)] = Type(shape, dtype)
        return Operand.value(name)

    for node in draft.graph.nodes:
        found = _turned_by_sections(view, node)
        if found is None:
            nodes.append(node)
            continue
        x, turn = found
        if turn not in made:
            made[turn] = _position_of_each(view, turn, emit)
        attributes = {"interleaved": False, "scaling": turn.scaling}
        angles = made[turn], _known(view, np.array(turn.frequencies, np.float32))
        shape = view.shape(x)
        if len(shape) == 4:
            nodes.append(Node("rotary", (x, *angles), {**attributes, "layout": "bhtd"}, node.outputs))
            continue
        alone = emit("reshape", (x,), {"shape": [1, -1, *shape[1:]]}, (1, *shape))
        turned = emit("rotary", (alone, *angles), {**attributes, "layout": "bthd"}, (1, *shape))
        nodes.append(Node("reshape", (turned,), {"shape": [-1, *shape[1:]]}, node.outputs))
    return view.finished(nodes)


def _position_of_each(view: View, turn: _Sections, emit: Callable[..., Operand]) -> Operand:
    """The position of each angle, int64 [batch or 1, tokens, angles]."""
    count, shape = len(turn.sections), view.shape(turn.positions)
    before, behind = shape[: turn.axis], shape[turn.axis + 1 : -1]
    ids = _known(view, np.array(turn.sections, np.int64))
    chosen = emit("take", (turn.positions, ids), {"axis": turn.axis}, (*before, count, *behind, 1))
    axes = [*range(turn.axis), *range(turn.axis + 1, len(shape) - 1), turn.axis, len(shape) - 1]
    last = emit("permute", (chosen,), {"axes": axes}, (*before, *behind, count, 1))
    tokens = (*before, *behind) if len(shape) == 4 else (1, *before, *behind)
    return emit("reshape", (last,), {"shape": stated((*tokens, count), 1)}, (*tokens, count))


def _turned_by_sections(view: View, node: Node) -> tuple[Operand, _Sections] | None:
    """What a sum turns, [batch, heads, tokens, features] or without a batch [tokens, heads, features], and by what."""
    if node.op != "add" or node.inputs[1] is None:
        return None
    for straight, crossed in operand_pairs(node):
        first, second = view.maker(straight, "multiply"), view.maker(crossed, "multiply")
        if first is None or second is None or first.inputs[1] is None or second.inputs[1] is None:
            continue
        for x, cosine in operand_pairs(first):
            for half_turned, sine in operand_pairs(second):
                if x is None or _half_turned(view, half_turned) != x:
                    continue
                turn = _sections(view, cosine, "cos")
                shape = view.shape(x)
                fits = turn is not None and len(shape) in (3, 4) and shape[-1] == 2 * len(turn.sections)
                if turn is not None and fits and turn == _sections(view, sine, "sin"):
                    return x, turn
    return None


def _sections(view: View, operand: Operand | None, function: str) -> _Sections | None:
    """The angles of a cosine or sine that is joined from parts of that of all positions, and stands twice."""
    joined = view.maker(_row_of_two(view, operand), "concat")
    found: set[tuple[Operand, int, float]] = set()
    sections, frequencies = list[int](), list[float]()
    for part in () if joined is None else joined.inputs:
        source, axis, section, start, stop = _cut(view, part)
        scaling, angles = _scaled(view, source, function)
        product = _moved(view, angles)
        if axis is None or product is None or product.op != "multiply":
            return None
        for given, other in operand_pairs(product):
            positions = _source(view, given, axes=len(view.shape(angles)))
            inv_freq = view.value_of(_constant_of(view, other))
            if positions is not None and view.shape(positions)[-1] == 1 and inv_freq is not None:
                own = inv_freq[start:stop].tolist()
                found.add((positions, axis, scaling))
                sections += [section] * len(own)
                frequencies += own
    if len(found) != 1:
        return None
    ((positions, axis, scaling),) = found
    return _Sections(positions, axis, tuple(sections), tuple(frequencies), scaling)


def _cut(view: View, part: Operand | None) -> tuple[Operand | None, int | None, int, int, int | None]:
    """What a part is cut out of; the axis along which one is taken there, if any, and which; its angles' ends."""
    axis, section, start, stop = None, 0, 0, None
    node = view.maker(part, "reshape", "slice")
    while node is not None:
        if node.op == "slice":
            at, shape = node.attributes, view.shape(node.inputs[0])
            if at["axis"] == len(shape) - 1:
                start, stop = at["start"], at["end"]
            elif (shape[at["axis"]] if at["end"] is None else at["end"]) == at["start"] + 1:
                axis, section = at["axis"], at["start"]
        part = node.inputs[0]
        node = view.maker(part, "reshape", "slice")
    return part, axis, section, start, stop


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
