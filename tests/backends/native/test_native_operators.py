"""Every native operator, compared with the reference over random shapes, strides and dtypes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from single_node import single_node
from weightpager.graph.operators import OPERATORS
from weightpager.graph.reference import run

native = pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.program import GraphProgram  # noqa: E402 - without the native module there is none

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)
ISAS = st.integers(0, len(native.isas()) - 1)


def _same(found: Any, wanted: Any, within: float) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, rtol=within, atol=within)


def _agrees(
    op: str,
    operands: Sequence[Any],
    attributes: Mapping[str, Any],
    rng: np.random.Generator,
    isa: int = 0,
    weights: Sequence[int] = (),
    within: float = 1e-5,
) -> None:
    """Whatever the operands' strides and the number of threads, the reference's result; the latter to the bit."""
    orders = [() if each is None else rng.permutation(each.ndim) for each in operands]
    graph, inputs, parameters = single_node(op, operands, attributes, weights, orders)
    wanted = run(graph, parameters, inputs)
    program = GraphProgram(graph, parameters, isa)
    found = [program.run(inputs, threads=threads) for threads in (1, 2, 3, 4)]
    for name, value in wanted.items():
        _same(found[0][name], value, within)
        for other in found[1:]:
            assert np.array_equal(other[name], found[0][name], equal_nan=True)


def _values(rng: np.random.Generator, shape: Sequence[int], dtype: str = "float32") -> Any:
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype == "int64":
        return rng.integers(-5, 6, shape)
    return rng.normal(0, 2, shape).astype(np.float32)


def test_there_is_a_native_operator_for_each_of_the_table() -> None:
    assert set(native.operators()) == set(OPERATORS)


UNARY = ["relu", "silu", "tanh", "sigmoid", "exp", "negate", "sin", "cos", "sqrt", "rsqrt", "gelu none", "gelu tanh"]


@pytest.mark.parametrize("name", UNARY)
@given(SHAPES, SEEDS, ISAS)
def test_elements(name: str, shape: list[int], seed: int, isa: int) -> None:
    rng = np.random.default_rng(seed)
    op, _, approximate = name.partition(" ")
    x = _values(rng, [*shape, 7])
    if op in ("sqrt", "rsqrt"):
        x = np.abs(x) + np.float32(0.1)
    _agrees(op, [x], {"approximate": approximate} if approximate else {}, rng, isa)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("isa", range(len(native.isas())))
def test_elements_far_from_zero(name: str, isa: int) -> None:
    op, _, approximate = name.partition(" ")
    x = np.concatenate([np.linspace(-80, 80, 4001), [0.0, -0.0, 1e-30, -1e-30]]).astype(np.float32)
    if op in ("sqrt", "rsqrt"):
        x = np.abs(x) + np.float32(1e-6)
    attributes = {"approximate": approximate} if approximate else {}
    _agrees(op, [x], attributes, np.random.default_rng(0), isa)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "silu", "relu", "gelu none", "gelu tanh"])
def test_what_is_no_number_stays_none(name: str) -> None:
    op, _, approximate = name.partition(" ")
    graph, inputs, _ = single_node(
        op, [np.full(40, np.nan, np.float32)], {"approximate": approximate} if approximate else {}
    )
    assert np.isnan(GraphProgram(graph, {}).run(inputs)["y0"]).all()


def _broadcast(rng: np.random.Generator, shape: list[int]) -> list[int]:
    """A shape that broadcasts to another."""
    kept = [1 if rng.integers(3) == 0 else size for size in shape]
    return kept[int(rng.integers(len(shape))) :]


@pytest.mark.parametrize("op", ["add", "subtract", "multiply", "divide"])
@given(SHAPES, SEEDS, ISAS, st.booleans(), st.sampled_from(["float32", "int64"]))
def test_arithmetic(op: str, shape: list[int], seed: int, isa: int, scalar: bool, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    if op == "divide":
        dtype = "float32"
    x, y = _values(rng, shape, dtype), _values(rng, _broadcast(rng, shape), dtype)
    if op == "divide":
        y = np.abs(y) + np.float32(0.5)
    if rng.integers(2) and not scalar and op != "divide":
        x, y = y, x
    _agrees(op, [x, None if scalar else y], {"scalar": 3 if scalar else None}, rng, isa)


COMPARISONS = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]


@pytest.mark.parametrize("op", COMPARISONS)
@given(SHAPES, SEEDS, st.booleans(), st.sampled_from(["float32", "int64", "bool"]))
def test_comparisons(op: str, shape: list[int], seed: int, scalar: bool, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    x, y = _values(rng, shape, dtype), _values(rng, _broadcast(rng, shape), dtype)
    _agrees(op, [x, None if scalar else y], {"scalar": 1 if scalar else None}, rng)


@given(SHAPES, SEEDS, st.sampled_from(["float32", "int64", "bool"]), st.sampled_from(["float32", "int64", "bool"]))
def test_conditions_and_casts(shape: list[int], seed: int, dtype: str, other: str) -> None:
    rng = np.random.default_rng(seed)
    x, y, condition = (
        _values(rng, shape, dtype),
        _values(rng, _broadcast(rng, shape), dtype),
        _values(rng, shape, "bool"),
    )
    _agrees("where", [condition, x, y], {}, rng)
    _agrees("cast", [x], {"dtype": other}, rng)
    _agrees("logical_not", [condition], {}, rng)
    for op in ("logical_and", "logical_or"):
        _agrees(op, [condition, _values(rng, _broadcast(rng, shape), "bool")], {}, rng)


@pytest.mark.parametrize("exponent", [2, 3.0, -0.5, 0.5])
@given(SHAPES, SEEDS)
def test_powers(exponent: float, shape: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    _agrees("power", [np.abs(_values(rng, shape)) + np.float32(0.1)], {"scalar": exponent}, rng)


COLUMNS = st.integers(1, 80)


@pytest.mark.slow
@given(SHAPES, COLUMNS, SEEDS, ISAS, st.integers(0, 7))
def test_norms(shape: list[int], columns: int, seed: int, isa: int, which: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (_values(rng, [*shape, columns]) + np.float32(3) for _ in range(2))
    weight = _values(rng, [columns]) if which & 1 else None
    bias = _values(rng, [columns]) if which & 2 else None
    # Less would tell how float32 rounds a mean where all columns are alike.
    centred = {"epsilon": 1e-3}
    plain = {"epsilon": 1e-6, "offset": which >> 2}
    _agrees("layer_norm", [x, weight, bias], centred, rng, isa, [1, 2], 3e-5)
    _agrees("rms_norm", [x, weight], plain, rng, isa, [1], 3e-5)
    _agrees("add_layer_norm", [x, y, weight, bias], centred, rng, isa, [2, 3], 3e-5)
    _agrees("add_rms_norm", [x, y, weight], plain, rng, isa, [2], 3e-5)


@pytest.mark.slow
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), SEEDS, ISAS, st.data())
def test_over_axes(shape: list[int], seed: int, isa: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    axis = data.draw(st.integers(0, len(shape) - 1))
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, unique=True))
    x = _values(rng, shape)
    for keep in (False, True):
        _agrees("mean", [x], {"axes": axes, "keep": keep}, rng)
        for dtype in ("float32", "int64", "bool"):
            _agrees("sum", [_values(rng, shape, dtype)], {"axes": axes, "keep": keep}, rng)
    _agrees("softmax", [x], {"axis": axis}, rng, isa)
    for dtype in ("float32", "int64", "bool"):
        _agrees("cumsum", [_values(rng, shape, dtype)], {"axis": axis}, rng)
        _agrees("argmax", [_values(rng, shape, dtype)], {"axis": axis}, rng)


def test_long_rows_of_softmax() -> None:
    rng = np.random.default_rng(0)
    for columns in (1, 15, 16, 17, 1000, 9001):
        _agrees("softmax", [_values(rng, [5, columns]) * np.float32(20)], {"axis": 1}, rng)


@pytest.mark.slow
@given(st.lists(st.sampled_from([0, 1, 2, 3, 4, 6]), min_size=1, max_size=4), SEEDS, st.data())
def test_shapes(shape: list[int], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    dtype = data.draw(st.sampled_from(["float32", "int64", "bool"]))
    x, axis = _values(rng, shape, dtype), data.draw(st.integers(0, len(shape) - 1))
    _agrees("permute", [x], {"axes": rng.permutation(len(shape)).tolist()}, rng)
    flat = [size for size in shape if size > 1] or [1]
    for target in ([-1], [1, *shape, 1], [*shape[:1], -1], flat if 0 not in shape else [0]):
        if -1 not in target or 0 not in shape:
            _agrees("reshape", [x], {"shape": target}, rng)
    start, end = data.draw(st.integers(-8, 8)), data.draw(st.one_of(st.none(), st.integers(-8, 8)))
    step = data.draw(st.integers(1, 3))
    _agrees("slice", [x], {"axis": axis, "start": start, "end": end, "step": step}, rng)
    others = [_values(rng, [*shape[:axis], size, *shape[axis + 1 :]], dtype) for size in (0, 1, 3)]
    _agrees("concat", [x, *others], {"axis": axis}, rng)
    thin = _values(rng, [1 if rng.integers(2) else size for size in shape], dtype)
    _agrees("expand", [thin], {"shape": [2, *[-1 if size != 1 else 3 for size in thin.shape]]}, rng)


@given(st.integers(-5, 9), st.integers(-5, 20), st.integers(1, 4), st.sampled_from(["float32", "int64", "bool"]))
def test_what_comes_of_nothing(start: int, end: int, step: int, dtype: str) -> None:
    rng = np.random.default_rng(0)
    _agrees("arange", [], {"start": start, "end": end, "step": step}, rng)
    _agrees("full", [], {"shape": [2, step], "value": start, "dtype": dtype}, rng)


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), SEEDS, st.data())
def test_selections(shape: list[int], seed: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    dtype, axis = data.draw(st.sampled_from(["float32", "int64", "bool"])), data.draw(st.integers(0, len(shape) - 1))
    x = _values(rng, shape, dtype)
    low = -shape[axis]
    _agrees("take", [x, rng.integers(low, shape[axis], (2, 3))], {"axis": axis}, rng)
    for others in (shape, [1 if rng.integers(2) else size for size in shape]):
        index = rng.integers(low, shape[axis], [*others[:axis], 4, *others[axis + 1 :]])
        _agrees("gather", [x, index], {"axis": axis}, rng)


ACTIVATIONS = st.sampled_from(["none", "gelu", "gelu_tanh", "relu", "silu", "tanh", "quick_gelu"])


@given(
    st.lists(st.integers(1, 9), min_size=0, max_size=3),
    st.integers(1, 90),
    st.integers(1, 70),
    SEEDS,
    ISAS,
    ACTIVATIONS,
    st.booleans(),
    st.booleans(),
)
def test_products(
    rows: list[int], inner: int, outer: int, seed: int, isa: int, activation: str, biased: bool, narrow: bool
) -> None:
    rng = np.random.default_rng(seed)
    x, weight, up = _values(rng, [*rows, inner]), _values(rng, [outer, inner]), _values(rng, [outer, inner])
    attributes = {"activation": activation}
    bias = _values(rng, [outer]) if biased else None
    within = 2e-5 * max(1.0, inner**0.5)
    if narrow:
        weight = _rounded(weight)
    _products_agree("linear", [x, weight, bias], attributes, rng, isa, within, narrow)
    if not narrow:
        _agrees("gated_linear", [x, weight, up], attributes, rng, isa, [1, 2], 20 * within)


@pytest.mark.parametrize("rows", [[], [2], [2, 3]])
@pytest.mark.parametrize("activation", ["none", "tanh"])
def test_products_of_no_inputs(rows: list[int], activation: str) -> None:
    """A sum of nothing is 0, and the bias is added all the same."""
    rng, attributes = np.random.default_rng(0), {"activation": activation}
    x, weight = _values(rng, [*rows, 0]), _values(rng, [3, 0])
    for bias in (None, _values(rng, [3])):
        _agrees("linear", [x, weight, bias], attributes, rng, 0, [1])
    _agrees("gated_linear", [x, weight, weight], attributes, rng, 0, [1, 2])


def _rounded(array: Any) -> Any:
    """To bfloat16, as float32: cut off."""
    return (array.view(np.uint32) & 0xFFFF0000).view(np.float32)


def _products_agree(
    op: str,
    operands: list[Any],
    attributes: dict[str, Any],
    rng: np.random.Generator,
    isa: int,
    within: float,
    narrow: bool,
) -> None:
    """As `_agrees`, with a weight that may be held in bfloat16."""
    if not narrow:
        return _agrees(op, operands, attributes, rng, isa, [1, 2], within)
    graph, inputs, parameters = single_node(op, operands, attributes, [1, 2])
    wanted = run(graph, parameters, inputs)["y0"]
    held = {**parameters, "x1": (parameters["x1"].view(np.uint32) >> 16).astype(np.uint16)}
    return _same(GraphProgram(graph, held, isa).run(inputs)["y0"], wanted, within)


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), SEEDS, ISAS, st.booleans(), st.data()
)
def test_convolutions(
    batch: int, channels: int, outputs: int, groups: int, seed: int, isa: int, narrow: bool, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    kernel = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    stride = data.draw(st.lists(st.integers(1, 3), min_size=2, max_size=2))
    padding = data.draw(st.lists(st.integers(0, 2), min_size=2, max_size=2))
    x = _values(rng, [batch, channels * groups, *data.draw(st.tuples(st.integers(4, 9), st.integers(4, 9)))])
    weight = _rounded(_values(rng, [outputs * groups, channels, *kernel]))
    bias = _values(rng, [outputs * groups]) if rng.integers(2) else None
    attributes = {"stride": stride, "padding": padding, "groups": groups}
    _products_agree("conv2d", [x, weight, bias], attributes, rng, isa, 1e-4, narrow)


@pytest.mark.parametrize("groups", [1, 3, 2**31 - 1])
def test_convolutions_without_outputs_give_nothing(groups: int) -> None:
    x, weight = np.ones((2, 0, 4, 4), np.float32), np.ones((0, 0, 1, 1), np.float32)
    graph, inputs, parameters = single_node(
        "conv2d", [x, weight, None], {"stride": [1, 1], "padding": [0, 0], "groups": groups}, [1]
    )
    assert GraphProgram(graph, parameters).run(inputs)["y0"].shape == (2, 0, 4, 4)


@given(SHAPES, st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), SEEDS)
def test_matrix_products(shape: list[int], rows: int, inner: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = _values(rng, [*shape[:2], rows, inner]), _values(rng, [*_broadcast(rng, shape[:2]), inner, columns])
    _agrees("matmul", [x, y], {}, rng, within=1e-4)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=2), st.integers(1, 40), SEEDS, st.booleans())
def test_embeddings(shape: list[int], columns: int, seed: int, narrow: bool) -> None:
    rng = np.random.default_rng(seed)
    table, ids = _rounded(_values(rng, [11, columns])), rng.integers(0, 11, shape)
    graph, inputs, parameters = single_node("embedding", [table, ids], {}, [0])
    held = {"x0": (table.view(np.uint32) >> 16).astype(np.uint16)} if narrow else parameters
    found = GraphProgram(graph, held).run(inputs)["y0"]
    assert np.array_equal(found, run(graph, parameters, inputs)["y0"])


@pytest.mark.parametrize("number", [1.5, 1e30, -3e38])
def test_a_number_beside_whole_ones_is_whole(number: float) -> None:
    ids = np.array([1, 2])
    graph, inputs, parameters = single_node("greater", [ids, None], {"scalar": number})
    with pytest.raises(ValueError, match="attribute scalar: expected an integer"):
        GraphProgram(graph, parameters).run(inputs)
    graph, inputs, parameters = single_node("full", [], {"shape": [2], "value": number, "dtype": "int64"})
    with pytest.raises(ValueError, match="attribute value: expected an integer"):
        GraphProgram(graph, parameters).run(inputs)


@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_ids_outside_of_a_table_are_refused(wrong: int) -> None:
    table = np.zeros((11, 3), np.float32)
    graph, inputs, parameters = single_node("embedding", [table, np.array([1, wrong])], {}, [0])
    with pytest.raises(IndexError, match="expected ids from 0 to 10"):
        GraphProgram(graph, parameters).run(inputs)
