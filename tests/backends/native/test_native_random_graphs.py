"""Random graphs of several nodes, many of which read views of other values, compared with the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pytest

from repetitions import times
from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.graph import Array
from weightpager.graph.operators import OPERATORS
from weightpager.graph.reference import FUNCTIONS

native = pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.program import GraphProgram  # noqa: E402 - without the native module there is none

_T = TypeVar("_T")

_MOVES = ("reshape", "permute", "slice", "expand", "concat", "take", "gather")

_COMPARISONS = ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal")

_EXACT = {*_MOVES, *_COMPARISONS, "embedding", "where", "cast", "argmax", "relu", "negate"}
"""Operators that give the same bits everywhere, of operands that have the same bits."""

_LARGEST = 100.0
"""Larger numbers are left out, so that one tolerance does for all that is computed from them."""

_MOST_ELEMENTS = 4000


class _UnfitError(Exception):
    """No such node can be made here."""


@dataclass(frozen=True)
class _Known:
    """An operand, what it holds, and whether that is the same to the bit wherever it is computed."""

    operand: Operand
    array: Array
    exact: bool


class _Growth:
    """A graph that grows node by node, together with what its values are by the reference."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.inputs: dict[str, Array] = {}
        self.parameters: dict[str, Array] = {}
        self.values: list[_Known] = []
        self.nodes: list[Node] = []
        for dtype in ("float32", "float32", "int64"):
            self.given(self.sizes(1, 4), dtype)

    def whole(self, least: int, most: int) -> int:
        """A whole number within bounds, both included."""
        return int(self.rng.integers(least, most + 1))

    def one_in(self, count: int) -> bool:
        """Whether something happens that does so once in a while."""
        return self.whole(1, count) == 1

    def any_of(self, choices: Sequence[_T]) -> _T:
        """One of them."""
        return choices[self.whole(0, len(choices) - 1)]

    def sizes(self, least: int, most: int) -> list[int]:
        """Sizes of so many axes."""
        return [self.any_of([1, 1, 2, 3, 4, 8]) for _ in range(self.whole(least, most))]

    def order(self, rank: int) -> list[int]:
        """Axes in any order."""
        return [int(axis) for axis in self.rng.permutation(rank)]

    def axis(self, x: _Known) -> int:
        """An axis of a value that has one."""
        if x.array.ndim == 0:
            raise _UnfitError
        return self.whole(0, x.array.ndim - 1)

    def given(self, shape: Sequence[int], dtype: str, bounds: tuple[int, int] = (-2, 2)) -> _Known:
        """A new input or parameter; whole numbers lie within the bounds."""
        if dtype == "float32":
            array: Array = self.rng.normal(size=shape).astype(np.float32)
        else:
            least, most = (0, 1) if dtype == "bool" else bounds
            array = self.rng.integers(least, most + 1, shape).astype(dtype)
        name = f"x{len(self.inputs) + len(self.parameters)}"
        if self.one_in(3):
            return self._known(Operand.parameter(name), self.parameters, array)
        return self._known(Operand.input(name), self.inputs, array)

    def weight(self, *shape: int) -> _Known:
        """A new parameter as operators take their weights."""
        name = f"x{len(self.inputs) + len(self.parameters)}"
        return self._known(Operand.parameter(name), self.parameters, self.rng.normal(size=shape).astype(np.float32))

    def _known(self, operand: Operand, among: dict[str, Array], array: Array) -> _Known:
        among[str(operand.key)] = array
        self.values.append(_Known(operand, array, exact=True))
        return self.values[-1]

    def view(self, shape: Sequence[int], dtype: str = "float32", bounds: tuple[int, int] = (-2, 2)) -> _Known:
        """A value of this shape: what is left of a new input after its axes are moved, cut and repeated."""
        repeated = [self.one_in(5) for _ in shape]
        starts, steps = [self.whole(0, 2) for _ in shape], [self.whole(1, 2) for _ in shape]
        cuts = [(at, at + max(0, (size - 1) * by + 1), by) for at, size, by in zip(starts, shape, steps, strict=True)]
        base = [1 if once else end + self.whole(0, 1) for once, (_, end, _) in zip(repeated, cuts, strict=True)]
        order = self.order(len(base))
        x = self.given([base[axis] for axis in order], dtype, bounds)
        if order != sorted(order):
            x = self.emit("permute", [x], axes=[int(axis) for axis in np.argsort(order)])
        for axis, (start, end, step) in enumerate(cuts):
            if not repeated[axis]:
                x = self.emit("slice", [x], axis=axis, start=start, end=end, step=step)
        return self.emit("expand", [x], shape=list(shape)) if any(repeated) else x

    def pick(self, *dtypes: str, least_rank: int = 0, exact: bool = False) -> _Known:
        """A value that there is, rather one of the last."""
        fit = [
            each
            for each in self.values
            if (not dtypes or str(each.array.dtype) in dtypes) and each.array.ndim >= least_rank and each.exact >= exact
        ]
        if not fit:
            raise _UnfitError
        return self.any_of(fit if self.one_in(3) else fit[-3:])

    def shaped(self, shape: Sequence[int], dtype: str = "float32", exact: bool = False) -> _Known:
        """A value of this shape, one that there is or a new one."""
        same = [
            each
            for each in self.values
            if each.array.shape == tuple(shape) and each.array.dtype == dtype and each.exact >= exact
        ]
        return self.any_of(same) if same and self.one_in(2) else self.view(shape, dtype)

    def beside(self, x: _Known, exact: bool = False) -> _Known:
        """A value of the same dtype whose shape broadcasts to that of ``x``."""
        kept = [1 if self.one_in(4) else size for size in x.array.shape]
        return self.shaped(kept[self.whole(0, len(kept)) :], str(x.array.dtype), exact)

    def emit(self, op: str, operands: Sequence[_Known | None], **attributes: Any) -> _Known:
        """A new node; its last value."""
        arrays = [None if each is None else each.array for each in operands]
        try:
            with np.errstate(all="ignore"):
                found = FUNCTIONS[op](*arrays, **attributes)
        except (ValueError, IndexError):  # of nothing there is no maximum, and an index may be none of its axis
            raise _UnfitError from None
        results = [np.asarray(each) for each in (found if isinstance(found, tuple) else (found,))]
        if not all(_fits(each) for each in results):
            raise _UnfitError
        given = [each for each in operands if each is not None]
        exact = op in _EXACT or all(each.array.dtype != np.float32 for each in given)
        exact = exact and all(each.exact for each in given)
        first = sum(len(node.outputs) for node in self.nodes)
        names = tuple(f"v{first + at}" for at in range(len(results)))
        taken = tuple(None if each is None else each.operand for each in operands)
        self.nodes.append(Node(op, taken, attributes, names))
        self.values += [_Known(Operand.value(name), each, exact) for name, each in zip(names, results, strict=True)]
        return self.values[-1]


def _fits(array: Array) -> bool:
    wide = array.astype(np.float64)
    small = array.size <= _MOST_ELEMENTS and array.ndim <= 6
    return small and bool(np.isfinite(wide).all()) and float(np.abs(wide).max(initial=0)) <= _LARGEST


def _unary(growth: _Growth, op: str) -> None:
    growth.emit(op, [growth.pick("float32", "int64") if op == "negate" else growth.pick("float32")])


def _positive(growth: _Growth, x: _Known) -> _Known:
    return growth.emit("add", [growth.emit("power", [x], scalar=2), None], scalar=1)


def _root(growth: _Growth, op: str) -> None:
    growth.emit(op, [_positive(growth, growth.pick("float32"))])


def _power(growth: _Growth, op: str) -> None:
    growth.emit(op, [growth.pick("float32")], scalar=growth.any_of([2, 3]))


def _gelu(growth: _Growth, op: str) -> None:
    growth.emit(op, [growth.pick("float32")], approximate=growth.any_of(["none", "tanh"]))


def _arithmetic(growth: _Growth, op: str) -> None:
    x = growth.pick("float32", "int64")
    y = None if growth.one_in(4) else growth.beside(x)
    operands: list[_Known | None] = [x, y] if y is None or growth.one_in(2) else [y, x]
    growth.emit(op, operands, scalar=3 if y is None else None)


def _divide(growth: _Growth, op: str) -> None:
    x = growth.pick("float32")
    y = None if growth.one_in(4) else _positive(growth, growth.beside(x))
    growth.emit(op, [x, y], scalar=3 if y is None else None)


def _compare(growth: _Growth, op: str) -> None:
    x = growth.pick(exact=True)
    y = None if growth.one_in(4) else growth.beside(x, exact=True)
    growth.emit(op, [x, y], scalar=1 if y is None else None)


def _combine(growth: _Growth, op: str) -> None:
    x = growth.shaped(growth.pick().array.shape, "bool")
    growth.emit(op, [x, growth.beside(x)])


def _not(growth: _Growth, op: str) -> None:
    growth.emit(op, [growth.shaped(growth.pick().array.shape, "bool")])


def _where(growth: _Growth, op: str) -> None:
    x = growth.pick()
    condition = growth.shaped(growth.beside(x).array.shape, "bool")
    growth.emit(op, [condition, x, growth.beside(x)])


def _cast(growth: _Growth, op: str) -> None:
    growth.emit(op, [growth.pick(exact=True)], dtype=growth.any_of(["float32", "int64", "bool"]))


def _reduce(growth: _Growth, op: str) -> None:
    x = growth.pick(*(["float32"] if op == "mean" else []), least_rank=1)
    if x.array.size == 0:
        raise _UnfitError
    axes = growth.order(x.array.ndim)[: growth.whole(1, x.array.ndim)]
    growth.emit(op, [x], axes=axes, keep=growth.one_in(2))


def _along(growth: _Growth, op: str) -> None:
    x = growth.pick(*(["float32"] if op == "softmax" else []), least_rank=1, exact=op == "argmax")
    growth.emit(op, [x], axis=growth.axis(x))


def _reshape(growth: _Growth, op: str) -> None:
    x = growth.pick(least_rank=growth.whole(0, 2))
    shape = list(x.array.shape)
    at = growth.whole(0, max(0, len(shape) - 2))
    ways = [[x.array.size], [1, *shape], [*shape[:at], int(np.prod(shape[at : at + 2])), *shape[at + 2 :]]]
    if x.array.size > 0:
        ways.append([*shape[:at], -1])
    ways += [[*shape[:at], by, shape[at] // by, *shape[at + 1 :]] for by in (2, 4) if shape and shape[at] % by == 0]
    growth.emit(op, [x], shape=growth.any_of(ways))


def _permute(growth: _Growth, op: str) -> None:
    x = growth.pick()
    growth.emit(op, [x], axes=growth.order(x.array.ndim))


def _slice(growth: _Growth, op: str) -> None:
    x = growth.pick(least_rank=1)
    start, end = growth.whole(-4, 3), growth.any_of([None, None, growth.whole(-3, 9)])
    growth.emit(op, [x], axis=growth.axis(x), start=start, end=end, step=growth.whole(1, 2))


def _expand(growth: _Growth, op: str) -> None:
    x = growth.pick()
    shape = [growth.any_of([-1, 3, 3]) if size == 1 else growth.any_of([-1, size]) for size in x.array.shape]
    growth.emit(op, [x], shape=[2, *shape] if growth.one_in(3) else shape)


def _concat(growth: _Growth, op: str) -> None:
    x = growth.pick(least_rank=1)
    axis, shape = growth.axis(x), list(x.array.shape)
    shape[axis] = growth.whole(1, 3)
    parts = [x, growth.shaped(shape, str(x.array.dtype)), x]
    growth.emit(op, [parts[at] for at in growth.order(3)[: growth.whole(1, 3)]], axis=axis)


def _arange(growth: _Growth, op: str) -> None:
    growth.emit(op, [], start=growth.whole(-3, 3), end=growth.whole(-2, 9), step=growth.whole(1, 3))


def _full(growth: _Growth, op: str) -> None:
    growth.emit(op, [], shape=growth.sizes(0, 3), value=growth.whole(-2, 2), dtype=growth.any_of(["float32", "int64"]))


def _gather(growth: _Growth, op: str) -> None:
    x = growth.pick(least_rank=1)
    axis, size = growth.axis(x), list(x.array.shape)
    if size[axis] == 0:
        raise _UnfitError
    others = [1 if growth.one_in(3) else each for each in size]
    index = [*others[:axis], growth.whole(1, 4), *others[axis + 1 :]]
    growth.emit(op, [x, growth.view(index, "int64", (-size[axis], size[axis] - 1))], axis=axis)


def _take(growth: _Growth, op: str) -> None:
    x = growth.pick(least_rank=1)
    axis = growth.axis(x)
    size = x.array.shape[axis]
    if size == 0:
        raise _UnfitError
    growth.emit(op, [x, growth.view(growth.sizes(0, 2), "int64", (-size, size - 1))], axis=axis)


def _embedding(growth: _Growth, op: str) -> None:
    rows = growth.whole(1, 5)
    growth.emit(op, [growth.weight(rows, growth.whole(1, 9)), growth.view(growth.sizes(0, 2), "int64", (0, rows - 1))])


def _linear(growth: _Growth, op: str) -> None:
    x, outputs = growth.pick("float32", least_rank=1), growth.whole(1, 9)
    activation = growth.any_of(["none", "gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu"])
    weight = growth.weight(outputs, x.array.shape[-1])
    if op == "gated_linear":
        growth.emit(op, [x, weight, growth.weight(outputs, x.array.shape[-1])], activation=activation)
    else:
        growth.emit(op, [x, weight, growth.shaped([outputs]) if growth.one_in(2) else None], activation=activation)


def _conv2d(growth: _Growth, op: str) -> None:
    groups, channels, outputs = (growth.whole(1, 3) for _ in range(3))
    weight = growth.weight(outputs * groups, channels, growth.whole(1, 3), growth.whole(1, 3))
    x = growth.shaped([growth.whole(1, 2), channels * groups, growth.whole(3, 6), growth.whole(3, 6)])
    bias = growth.shaped([outputs * groups]) if growth.one_in(2) else None
    stride, padding = ([growth.whole(least, 2) for _ in range(2)] for least in (1, 0))
    growth.emit(op, [x, weight, bias], stride=stride, padding=padding, groups=groups)


def _matmul(growth: _Growth, op: str) -> None:
    x = growth.pick("float32", least_rank=2)
    lead = [1 if growth.one_in(3) else size for size in x.array.shape[:-2]]
    growth.emit(op, [x, growth.shaped([*lead[growth.whole(0, len(lead)) :], x.array.shape[-1], growth.whole(1, 5)])])


def _attention(growth: _Growth, op: str) -> None:
    batch, groups, each, depth, width = (growth.whole(1, 3) for _ in range(5))
    queries, causal, layout = growth.whole(1, 9), growth.one_in(2), growth.any_of(["bhtd", "bthd"])
    keys = queries if causal else growth.whole(1, 9)

    def turned(heads: int, tokens: int, features: int) -> list[int]:
        return [batch, heads, tokens, features] if layout == "bhtd" else [batch, tokens, heads, features]

    x = [growth.shaped(turned(groups * each, queries, depth)), growth.shaped(turned(groups, keys, depth))]
    x.append(growth.shaped(turned(groups, keys, width)))
    mask = growth.view([batch, keys], growth.any_of(["int64", "bool"]), (0, 1)) if growth.one_in(2) else None
    window, softcap = growth.any_of([0, 0, 1, 3]), growth.any_of([0, 2])
    index = sum(node.op == op for node in growth.nodes)
    around = {"causal": causal, "window": window, "softcap": softcap, "index": index, "layout": layout}
    growth.emit(op, [*x, mask], scale=0.7, **around)


def _segment_attention(growth: _Growth, op: str) -> None:
    batch, groups, each, depth, width = (growth.whole(1, 3) for _ in range(5))
    tokens, layout = growth.whole(1, 9), growth.any_of(["bhtd", "bthd"])

    def heads(count: int, features: int) -> Any:
        return growth.shaped([batch, count, tokens, features] if layout == "bhtd" else [batch, tokens, count, features])

    x = [heads(groups * each, depth), heads(groups, depth), heads(groups, width)]
    growth.emit(op, [*x, growth.view([batch, tokens], "int64", (0, 2))], scale=0.5, layout=layout)


def _rotary(growth: _Growth, op: str) -> None:
    batch, heads, tokens, half = (growth.whole(1, 4) for _ in range(4))
    layout, features = growth.any_of(["bhtd", "bthd"]), 2 * half + growth.whole(0, 2)
    x = growth.shaped([batch, heads, tokens, features] if layout == "bhtd" else [batch, tokens, heads, features])
    of_each = [half] if growth.one_in(3) else []
    positions = growth.view([growth.any_of([1, batch]), tokens, *of_each], "int64", (0, 9))
    turn = {"interleaved": growth.one_in(2), "scaling": growth.any_of([1.0, 0.5]), "layout": layout}
    growth.emit(op, [x, positions, growth.shaped([half], exact=True)], **turn)


def _norm(growth: _Growth, op: str) -> None:
    x = growth.pick("float32", least_rank=1)
    if x.array.shape[-1] == 0:
        raise _UnfitError
    operands = [x, growth.shaped(x.array.shape)] if op.startswith("add_") else [x]
    scales = [growth.shaped(x.array.shape[-1:]) if growth.one_in(2) else None for _ in range(2)]
    if op.endswith("layer_norm"):
        growth.emit(op, [*operands, *scales], epsilon=0.1)
    else:
        growth.emit(op, [*operands, scales[0]], epsilon=0.1, offset=growth.whole(0, 1))


_MAKERS: dict[str, Callable[[_Growth, str], None]] = {
    **dict.fromkeys(["relu", "silu", "tanh", "sigmoid", "exp", "negate", "sin", "cos"], _unary),
    **dict.fromkeys(["sqrt", "rsqrt"], _root),
    **dict.fromkeys(["add", "subtract", "multiply"], _arithmetic),
    **dict.fromkeys(_COMPARISONS, _compare),
    **dict.fromkeys(["logical_and", "logical_or"], _combine),
    **dict.fromkeys(["mean", "sum"], _reduce),
    **dict.fromkeys(["softmax", "cumsum", "argmax"], _along),
    **dict.fromkeys(["layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm"], _norm),
    **dict.fromkeys(["linear", "gated_linear"], _linear),
    "power": _power,
    "gelu": _gelu,
    "divide": _divide,
    "logical_not": _not,
    "where": _where,
    "cast": _cast,
    "reshape": _reshape,
    "permute": _permute,
    "slice": _slice,
    "expand": _expand,
    "concat": _concat,
    "arange": _arange,
    "full": _full,
    "gather": _gather,
    "take": _take,
    "embedding": _embedding,
    "conv2d": _conv2d,
    "matmul": _matmul,
    "attention": _attention,
    "segment_attention": _segment_attention,
    "rotary": _rotary,
}
"""Operator → what adds a node of it to a graph."""


def _grown(seed: int) -> _Growth:
    growth = _Growth(seed)
    for _ in range(growth.whole(3, 11)):
        op = growth.any_of(_MOVES if growth.one_in(2) else list(OPERATORS))
        with suppress(_UnfitError):
            _MAKERS[op](growth, op)
    return growth


def _check(seed: int) -> None:
    """All values that no node reads, and one more, are what the reference says."""
    growth = _grown(seed)
    computed = [each for each in growth.values if each.operand.kind == "value"]
    if not computed:
        return
    read = {operand for node in growth.nodes for operand in node.inputs}
    ends = [each for each in computed if each.operand not in read]
    wanted = {str(each.operand.key): each.array for each in (growth.any_of(computed), *ends)}
    graph = Graph(
        "test",
        ("batch",),
        tuple(GraphInput(name, str(array.dtype), array.shape) for name, array in growth.inputs.items()),
        tuple(growth.nodes),
        tuple(GraphOutput(name, name) for name in wanted),
    )
    program = GraphProgram(graph, growth.parameters, seed % len(native.isas()))
    found = program.run(growth.inputs, threads=growth.whole(1, 2))
    for name, array in wanted.items():
        said = f"seed {seed}: {next(node for node in growth.nodes if name in node.outputs)}"
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), said
        np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=1e-3, err_msg=said)


def test_every_operator_has_its_place_in_graphs() -> None:
    assert _MAKERS.keys() == OPERATORS.keys()
    assert {node.op for seed in range(100) for node in _grown(seed).nodes} == OPERATORS.keys()


def test_random_graphs() -> None:
    for seed in range(400):
        _check(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 9000, 1000))
def test_many_random_graphs(first: int) -> None:
    for seed in range(first, first + times(1000)):
        _check(seed)
