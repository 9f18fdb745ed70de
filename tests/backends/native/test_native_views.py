"""Values that look at the memory of others, and the operators that read it by other ways than element by element."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.reference import run

native = pytest.importorskip("weightpager.kernels._native")

from weightpager.backends.native import Program  # noqa: E402 - without the native module there is none

_X = Operand.input("x")
_VALUE = Operand.value


def _graph(nodes: Sequence[Node], **inputs: Any) -> Graph:
    taken = tuple(GraphInput(name, str(array.dtype), array.shape) for name, array in inputs.items())
    return Graph("test", ("batch",), taken, tuple(nodes), (GraphOutput("y", nodes[-1].output),))


def _agrees(nodes: Sequence[Node], **inputs: Any) -> None:
    graph = _graph(nodes, **inputs)
    assert np.array_equal(Program(graph, {}).run(inputs)["y"], run(graph, {}, inputs)["y"])


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
