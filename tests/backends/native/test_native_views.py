"""Values that look at the memory of others, and the operators that read it by other ways than element by element."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.reference import run

native = pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native.program import GraphProgram  # noqa: E402 - without the native module there is none

_X = Operand.input("x")
_VALUE = Operand.value


def _graph(nodes: Sequence[Node], **inputs: Any) -> Graph:
    taken = tuple(GraphInput(name, str(array.dtype), array.shape) for name, array in inputs.items())
    return Graph("test", ("batch",), taken, tuple(nodes), (GraphOutput("y", nodes[-1].output),))


def _agrees(nodes: Sequence[Node], **inputs: Any) -> None:
    graph = _graph(nodes, **inputs)
    assert np.array_equal(GraphProgram(graph, {}).run(inputs)["y"], run(graph, {}, inputs)["y"])


@pytest.mark.parametrize(
    ("size", "expanded", "shape"),
    [
        ([2, 1], [2, 3], [6]),
        ([2, 1], [2, 3], [3, 2]),
        ([1, 2], [3, 2], [6]),
        ([2, 1, 1], [2, 3, 2], [2, 6]),
        ([2, 1, 2], [2, 3, 2], [6, 2]),
        ([1, 1], [4, 3], [2, 6]),
    ],
)
def test_a_reshape_of_an_expanded_value(size: list[int], expanded: list[int], shape: list[int]) -> None:
    x = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    _agrees(
        [
            Node("expand", (_X,), {"shape": expanded}, ("v0",)),
            Node("reshape", (_VALUE("v0"),), {"shape": shape}, ("v1",)),
        ],
        x=x,
    )


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_taken_of_a_slice(dtype: str, axis: int) -> None:
    x = np.arange(24).reshape(2, 4, 3)
    cut = {"axis": 0, "start": 1, "end": None, "step": 1}
    nodes = [
        Node("cast", (_X,), {"dtype": dtype}, ("v0",)),
        Node("slice", (_VALUE("v0"),), cut, ("v1",)),
        Node("reshape", (_VALUE("v1"),), {"shape": [4, 3]}, ("v2",)),
        Node("slice", (_VALUE("v2"),), cut, ("v3",)),
        Node("take", (_VALUE("v3"), Operand.input("ids")), {"axis": axis}, ("v4",)),
    ]
    _agrees(nodes, x=x % 5, ids=np.array([[2, 0], [-1, 1]]))


_WEIGHTS: list[tuple[str, Sequence[Any], dict[str, Any], list[int]]] = [
    ("linear", [_X, "w", None], {"activation": "none"}, [4, 4]),
    ("gated_linear", [_X, "w", Operand.parameter("w")], {"activation": "silu"}, [4, 4]),
    ("gated_linear", [_X, Operand.parameter("w"), "w"], {"activation": "relu"}, [4, 4]),
    ("embedding", ["w", Operand.input("ids")], {}, [4, 4]),
    ("conv2d", [Operand.input("image"), "w", None], {"stride": [1, 1], "padding": [0, 0], "groups": 1}, [2, 2, 2, 2]),
]
"""Operators, their operands ("w" for a view of the parameter), attributes, and the parameter's sizes."""


def _with_weight_by(op: str, operands: Sequence[Any], attributes: dict[str, Any], view: Node) -> tuple[Graph, Any]:
    inputs = {"x": np.ones((3, 4), np.float32), "ids": np.array([0, 3]), "image": np.ones((1, 2, 3, 3), np.float32)}
    given = tuple(_VALUE("v0") if each == "w" else each for each in operands)
    return _graph([view, Node(op, given, attributes, ("v1",))], **inputs), inputs


_VIEWS: list[tuple[str, dict[str, Any]]] = [
    ("permute", {"axes": [1, 0]}),
    ("slice", {"axis": 0, "start": 1, "end": None, "step": 1}),
    ("slice", {"axis": 0, "start": 0, "end": 1, "step": 1}),
    ("reshape", {"shape": [2, 8]}),
    ("expand", {"shape": [2, -1, -1]}),
]


@pytest.mark.parametrize(("view", "how"), _VIEWS)
@pytest.mark.parametrize(("op", "operands", "attributes", "sizes"), _WEIGHTS)
def test_a_weight_is_a_parameter_as_it_is_stored(
    op: str, operands: Sequence[Any], attributes: dict[str, Any], sizes: list[int], view: str, how: dict[str, Any]
) -> None:
    if op == "conv2d" and view in ("permute", "expand"):
        how = {"axes": [1, 0, 2, 3]} if view == "permute" else {"shape": [2, *sizes]}
    made = Node(view, (Operand.parameter("w"),), how, ("v0",))
    graph, inputs = _with_weight_by(op, operands, attributes, made)
    program = GraphProgram(graph, {"w": np.ones(sizes, np.float32)})
    with pytest.raises(ValueError, match=rf"node 1 \({op}\): operand \d: expected w as it is stored, \[.*, found"):
        program.run(inputs)


@pytest.mark.parametrize(("op", "operands", "attributes", "sizes"), _WEIGHTS)
def test_a_weight_may_be_a_view_of_all_of_a_parameter(
    op: str, operands: Sequence[Any], attributes: dict[str, Any], sizes: list[int]
) -> None:
    made = Node("reshape", (Operand.parameter("w"),), {"shape": sizes}, ("v0",))
    graph, inputs = _with_weight_by(op, operands, attributes, made)
    w = np.random.default_rng(0).normal(size=sizes).astype(np.float32)
    np.testing.assert_allclose(
        GraphProgram(graph, {"w": w}).run(inputs)["y"], run(graph, {"w": w}, inputs)["y"], rtol=1e-5
    )


_PRODUCTS = {
    "matmul": ([2**20, 2**20], Node("matmul", (_VALUE("a"), _VALUE("a")), {}, ("b",))),
    "attention": (
        [1, 1, 2**30, 64],
        Node(
            "attention",
            (_VALUE("a"), _VALUE("a"), _VALUE("a"), None),
            {"layout": "bhtd", "scale": 1.0, "causal": False, "window": 0, "softcap": 0.0, "index": 0},
            ("b",),
        ),
    ),
}


@pytest.mark.parametrize("name", _PRODUCTS)
def test_products_of_what_takes_no_memory_are_bounded(name: str) -> None:
    shape, node = _PRODUCTS[name]
    expand = Node("expand", (_X,), {"shape": shape}, ("a",))
    x = np.ones([1] * (len(shape) - 1) + shape[-1:], np.float32)
    with pytest.raises(
        ValueError, match=rf"node 1 \({name}\): expected at most 2\^50 multiplications in a call, found"
    ):
        GraphProgram(_graph([expand, node], x=x), {}).run({"x": x})


def test_all_products_of_a_call_are_bounded_together() -> None:
    expand = Node("expand", (_X,), {"shape": [2**13, 2**20]}, ("a",))
    turn = Node("permute", (_VALUE("a"),), {"axes": [1, 0]}, ("c",))
    products = [Node("matmul", (_VALUE("a"), _VALUE("c")), {}, (f"v{at}",)) for at in range(20)]
    x = np.ones((1, 2**20), np.float32)
    wanted = r"node 18 \(matmul\): .* found 70368744177664 here and 1125899906842624 before: give fewer"
    with pytest.raises(ValueError, match=wanted):
        GraphProgram(_graph([expand, turn, *products], x=x), {}).run({"x": x})
