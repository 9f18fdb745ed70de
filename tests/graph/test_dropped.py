"""Zeros that are followed through a graph, by rules, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.dropped import replaced, without
from weightpager.graph.reference import run

ACTIVATION = {"activation": "none"}
LINEAR = "linear"


def node(op: str, *inputs: Operand | None, outputs: str = "", **attributes: Any) -> Node:
    return Node(op, inputs, attributes, tuple(outputs.split()))


def value(name: str) -> Operand:
    return Operand.value(name)


def weight(name: str) -> Operand:
    return Operand.parameter(name)


def graph(*nodes: Node, output: str) -> Graph:
    first = node("embedding", weight("table"), Operand.input("input_ids"), outputs="v0")
    inputs = (GraphInput("input_ids", "int64", ("batch", "length")),)
    return Graph("language-modeling", ("batch", "length"), inputs, (first, *nodes), (GraphOutput("logits", output),))


def linear(x: str, name: str, output: str, bias: str | None = None) -> Node:
    return node(LINEAR, value(x), weight(name), None if bias is None else weight(bias), outputs=output, **ACTIVATION)


NORM = {"epsilon": 1e-5}


def values() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shapes = {"table": (9, 4), "a": (4, 4), "b": (4, 4), "c": (4, 4), "bias": (4,), "n": (4,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


IDS = np.array([[1, 2, 3]])


def test_a_sum_becomes_its_other_operand_and_its_bias_is_not_added() -> None:
    of = graph(
        linear("v0", "a", "v1"),
        linear("v1", "b", "v2", "bias"),
        node("add", value("v0"), value("v2"), outputs="v3", scalar=None),
        linear("v3", "c", "v4"),
        output="v4",
    )
    left = without(of, {"b"})
    assert [(each.op, each.output) for each in left.nodes] == [("embedding", "v0"), ("linear", "v4")]
    given, found = values(), run(left, values(), {"input_ids": IDS})["logits"]
    np.testing.assert_allclose(found, given["table"][IDS] @ given["c"].T, rtol=1e-5)
    assert without(of, ()) is of


def test_a_norm_behind_the_sum_still_runs() -> None:
    of = graph(
        linear("v0", "a", "v1", "bias"),
        node("add_layer_norm", value("v1"), value("v0"), weight("n"), weight("bias"), outputs="v2 v3", **NORM),
        node("add", value("v2"), value("v3"), outputs="v4", scalar=None),
        output="v4",
    )
    left = without(of, {"a"})
    assert [each.op for each in left.nodes] == ["embedding", "layer_norm", "add"]
    x = values()["table"][IDS]
    norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    wanted = x + norm * values()["n"] + values()["bias"]
    np.testing.assert_allclose(run(left, values(), {"input_ids": IDS})["logits"], wanted, rtol=1e-4, atol=1e-5)


def test_a_norm_that_only_a_dropped_half_layer_reads_is_not_computed() -> None:
    of = graph(
        linear("v0", "a", "v1"),
        node("add_rms_norm", value("v1"), value("v0"), weight("n"), outputs="v2 v3", epsilon=1e-6, offset=0),
        linear("v3", "b", "v4"),
        node("add", value("v2"), value("v4"), outputs="v5", scalar=None),
        output="v5",
    )
    left = without(of, {"b"})
    assert [each.op for each in left.nodes] == ["embedding", "linear", "add"]
    assert left.outputs[0].value == "v2"
    x, given = values()["table"][IDS], values()
    np.testing.assert_allclose(run(left, given, {"input_ids": IDS})["logits"], x + x @ given["a"].T, rtol=1e-5)


def test_zeros_pass_a_norm_of_the_branch_and_what_is_multiplied() -> None:
    of = graph(
        linear("v0", "a", "v1"),
        node("softmax", value("v1"), outputs="v2", axis=2),
        linear("v0", "b", "v3"),
        node("multiply", value("v2"), value("v3"), outputs="v4", scalar=None),
        node("rms_norm", value("v4"), weight("n"), outputs="v5", epsilon=1e-6, offset=0),
        node("add", value("v5"), value("v0"), outputs="v6", scalar=None),
        linear("v6", "c", "v7"),
        output="v7",
    )
    assert [each.output for each in without(of, {"a", "b"}).nodes] == ["v0", "v7"]


def test_sums_that_are_others_are_named_if_anything_is_left_that_takes_them() -> None:
    of = graph(
        linear("v0", "a", "v1"),
        node("add", value("v1"), value("v0"), outputs="v2", scalar=None),
        node("softmax", value("v2"), outputs="v3", axis=2),
        node("matmul", value("v3"), value("v1"), outputs="v4"),
        node("add", value("v4"), value("v0"), outputs="v5", scalar=None),
        linear("v0", "b", "v6"),
        node("add_rms_norm", value("v6"), value("v5"), weight("n"), outputs="v7 v8", epsilon=1e-6, offset=0),
        output="v8",
    )
    assert replaced(of, {"a"}) == {"v5": "v0"}
    assert replaced(of, {"a", "b"}) == {"v5": "v0", "v7": "v0"}
    assert replaced(of, ()) == {}


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (graph(linear("v0", "a", "v1"), output="v1"), "found none left of it"),
        (
            graph(
                linear("v0", "a", "v1"),
                node("layer_norm", value("v1"), weight("n"), weight("bias"), outputs="v2", **NORM),
                output="v2",
            ),
            "found their zeros in layer_norm v2",
        ),
        (
            graph(linear("v0", "a", "v1"), node("add", value("v1"), None, outputs="v2", scalar=1.0), output="v2"),
            "found their zeros in add v2",
        ),
        (
            graph(
                linear("v0", "a", "v1"), node("add", value("v1"), weight("n"), outputs="v2", scalar=None), output="v2"
            ),
            "found their zeros in add v2",
        ),
        (
            graph(
                linear("v0", "a", "v1"),
                node("divide", value("v0"), value("v1"), outputs="v2", scalar=None),
                output="v2",
            ),
            "found their zeros in divide v2",
        ),
        (
            graph(
                linear("v0", "a", "v1"),
                node("layer_norm", value("v1"), weight("n"), None, outputs="v2", epsilon=0.0),
                node("add", value("v0"), value("v2"), outputs="v3", scalar=None),
                output="v3",
            ),
            "found their zeros in layer_norm v2",
        ),
        (
            graph(
                linear("v0", "a", "v1"),
                node("full", outputs="v2", shape=[1, 1, 4], value=1.0, dtype="float32"),
                node("add", value("v1"), value("v2"), outputs="v3", scalar=None),
                output="v3",
            ),
            "found their zeros in add v3",
        ),
    ],
)
def test_zeros_that_are_not_added_to_anything_are_refused(of: Graph, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        without(of, {"a"})
