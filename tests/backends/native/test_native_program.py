"""Whole graphs with weights in blocks, tables, rows on demand and gates; and what is wrong with graphs and inputs."""

import os
import sys
from dataclasses import replace
from itertools import pairwise
from threading import Thread
from typing import Any

import numpy as np
import pytest

from graphs import classifier
from weightpager.graph import Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.reference import run

native = pytest.importorskip("weightpager.kernels._native")

from native_blocks import blocks_of  # noqa: E402 - without the native module there is none
from weightpager.answers.model import CacheSize  # noqa: E402
from weightpager.backends.native.program import GraphProgram, Workspaces, thread_count  # noqa: E402
from weightpager.backends.native.task import NativeTask  # noqa: E402
from weightpager.errors import ConfigError  # noqa: E402
from weightpager.kernels import PageNotResidentError  # noqa: E402
from weightpager.machine import processor  # noqa: E402

FEATURES, WIDE, WORDS = 48, 80, 50


def _values(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).normal(0, 0.5, shape).astype(np.float32)


def _sparse(seed: int, rows: int, columns: int) -> Any:
    weight = _values(seed, rows, columns)
    weight[:16, :32] = weight[16:32, 32:] = 0
    return weight


def _parameter(name: str) -> Operand:
    return Operand.parameter(name)


def _feed_forward() -> Graph:
    """An embedding, a gated layer, two plain ones, and a head that is tied to the embedding."""
    value = Operand.value
    return Graph(
        "language-modeling",
        ("batch", "length"),
        (GraphInput("input_ids", "int64", ("batch", "length")),),
        (
            Node("embedding", (_parameter("table"), Operand.input("input_ids")), {}, ("v0",)),
            Node("gated_linear", (value("v0"), _parameter("gate"), _parameter("up")), {"activation": "silu"}, ("v1",)),
            Node("linear", (value("v1"), _parameter("down"), _parameter("bias")), {"activation": "gelu"}, ("v2",)),
            Node("add_rms_norm", (value("v0"), value("v2"), None), {"epsilon": 1e-5, "offset": 0}, ("v3", "v4")),
            Node("linear", (value("v4"), _parameter("table"), None), {"activation": "none"}, ("v5",)),
        ),
        (GraphOutput("logits", "v5"), GraphOutput("hidden", "v4")),
    )


class _Parts:
    """Its parameters, as native code has them and as arrays."""

    def __init__(self, dtype: str = "float32", *, low_rank: bool = False) -> None:
        made = {
            "table": blocks_of(_values(1, WORDS, FEATURES), "int8", table=True),
            "gate": blocks_of(_sparse(2, WIDE, FEATURES), dtype, layer=0),
            "up": blocks_of(_sparse(3, WIDE, FEATURES), dtype, layer=0),
            "down": blocks_of(_sparse(4, FEATURES, WIDE), dtype, layer=1),
        }
        self.native: dict[str, Any] = {name: each[0] for name, each in made.items()}
        self.arrays = {name: each[1] for name, each in made.items()}
        self.page_tables = {name: each[2] for name, each in made.items()}
        if low_rank:
            for name, part in (
                ("up", (_values(5, 4, FEATURES), _values(6, WIDE, 4))),
                ("down", (_values(8, 3, WIDE), _values(9, FEATURES, 3))),
            ):
                down, up = (blocks_of(each, "int8") for each in part)
                self.native[name] = replace(self.native[name], low_rank=(down[0], up[0]))
                self.arrays[name] = self.arrays[name] + up[1] @ down[1]
        self.native["bias"] = self.arrays["bias"] = _values(7, FEATURES)


IDS = np.random.default_rng(0).integers(0, WORDS, (3, 7))


@pytest.mark.parametrize("isa", range(len(native.isas())))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("low_rank", [False, True], ids=["whole", "low-rank"])
@pytest.mark.parametrize("ids", [IDS, IDS[:1, :1], IDS[:, :2]], ids=["many", "one", "few"])
def test_weights_in_blocks(dtype: str, low_rank: bool, ids: Any, isa: int) -> None:
    """As the reference has them with what their blocks hold. Activations beside scaled ones are rounded to 15 bits."""
    parts = _Parts(dtype, low_rank=low_rank)
    program = GraphProgram(_feed_forward(), parts.native, isa)
    wanted = run(_feed_forward(), parts.arrays, {"input_ids": ids})
    found = [program.run({"input_ids": ids}, threads=threads) for threads in (1, 2, 3, 4)]
    for name, value in wanted.items():
        # The head's table is int8, and so are pages of low-rank parts.
        rounded = name == "logits" or dtype in ("int8", "int4") or low_rank
        within = 1e-3 if rounded else 2e-5
        np.testing.assert_allclose(found[0][name], value, rtol=within, atol=within)
        for other in found[1:]:
            assert np.array_equal(other[name], found[0][name])


class _Gate:
    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.inside: dict[object, int] = {}

    def enter(self, reader: object, layer: int) -> None:
        self.calls.append(("enter", layer))
        self.inside[reader] = layer

    def note_read(self) -> None:
        pass

    def leave(self, reader: object, /) -> None:
        self.calls.append(("leave", self.inside.pop(reader)))


def test_each_layer_waits_for_its_own_pages() -> None:
    parts, gate = _Parts(), _Gate()
    program = GraphProgram(_feed_forward(), parts.native)
    assert "logits" in program.run({"input_ids": IDS}, gate=gate)
    assert gate.calls == [("enter", 0), ("leave", 0), ("enter", 1), ("leave", 1)]


def test_a_tasks_head_waits_for_its_pages() -> None:
    node = Node("linear", (Operand.input("hidden"), _parameter("down"), None), {"activation": "none"}, ("v0",))
    hidden = GraphInput("hidden", "float32", ("batch", "length", WIDE))
    head = Graph("language-modeling", ("batch", "length"), (hidden,), (node,), (GraphOutput("logits", "v0"),))
    parts, gate = _Parts(), _Gate()
    programs = GraphProgram(_feed_forward(), parts.native), GraphProgram(head, {"down": parts.native["down"]})
    assert NativeTask("a", _feed_forward(), programs, gate, 8, CacheSize()).head(_values(8, 1, 2, WIDE)).shape == (
        1,
        2,
        FEATURES,
    )
    assert gate.calls == [("enter", 1), ("leave", 1)]


def test_a_page_that_is_not_there_is_told_and_may_come_later() -> None:
    parts, gate = _Parts(), _Gate()
    program = GraphProgram(_feed_forward(), parts.native)
    wanted = program.run({"input_ids": IDS})["logits"]
    parts.page_tables["down"][1] = -1
    with pytest.raises(PageNotResidentError, match="page 1 is not in the arena"):
        program.run({"input_ids": IDS}, gate=gate)
    assert gate.calls[-1] == ("leave", 1)
    parts.page_tables["down"][1] = 1
    assert np.array_equal(program.run({"input_ids": IDS})["logits"], wanted)


class _Rows:
    """A table that notes what is looked up."""

    def __init__(self, table: Any) -> None:
        self.table, self.wanted = table, list[int]()
        self.rows, self.columns = table.shape

    def look_up(self, ids: Any, out: Any) -> None:
        self.wanted += ids.tolist()
        out[:] = self.table[ids]


def _looked_up_twice() -> Graph:
    node = {"scalar": 1}
    return Graph(
        "test",
        ("batch", "length"),
        (GraphInput("input_ids", "int64", ("batch", "length")),),
        (
            Node("embedding", (_parameter("table"), Operand.input("input_ids")), {}, ("v0",)),
            Node("add", (Operand.input("input_ids"), None), node, ("v1",)),
            Node("embedding", (_parameter("table"), Operand.value("v1")), {}, ("v2",)),
            Node("add", (Operand.value("v0"), Operand.value("v2")), {"scalar": None}, ("v3",)),
        ),
        (GraphOutput("hidden", "v3"),),
    )


def test_rows_on_demand_are_looked_up_by_the_batch() -> None:
    rows = _Rows(_values(1, WORDS, FEATURES))
    program, ids = GraphProgram(_looked_up_twice(), {"table": rows}), np.array([[3, 1, 3]])
    assert np.array_equal(program.run({"input_ids": ids})["hidden"], rows.table[ids] + rows.table[ids + 1])
    assert rows.wanted == [3, 1, 3, 4, 2, 4]
    with pytest.raises(IndexError, match=f"from 0 to {WORDS - 1}, found 1 to {WORDS}"):
        program.run({"input_ids": np.array([[0, WORDS - 1]])})


def _classifier(features: int = 8) -> tuple[Graph, dict[str, Any]]:
    graph = classifier(features)
    shapes = {"base_model.table.weight": (11, features), "norm.weight": (features,), "head.weight": (3, features)}
    return graph, {name: _values(at, *shape) for at, (name, shape) in enumerate(shapes.items())}


def _inputs(batch: int, length: int) -> dict[str, Any]:
    rng = np.random.default_rng(length)
    mask = np.ones((batch, length), np.int64)
    mask[0, : length // 2] = 0
    return {"input_ids": rng.integers(0, 11, (batch, length)), "attention_mask": mask}


def test_calls_of_many_shapes_in_any_order() -> None:
    graph, parameters = _classifier()
    program = GraphProgram(graph, parameters)
    for batch, length in [(1, 1), (3, 70), (2, 5), (3, 70), (1, 200), (2, 5)]:
        inputs = _inputs(batch, length)
        wanted = run(graph, parameters, inputs)["logits"]
        np.testing.assert_allclose(program.run(inputs)["logits"], wanted, rtol=1e-5, atol=1e-5)
    assert program._native.plans_made == 4


def test_an_empty_batch_gives_nothing() -> None:
    graph, parameters = _classifier()
    assert GraphProgram(graph, parameters).run(_inputs(1, 5) | {"input_ids": np.zeros((1, 5), np.int64)})[
        "logits"
    ].shape == (1, 3)
    empty = {name: np.zeros((0, 4), np.int64) for name in ("input_ids", "attention_mask")}
    assert GraphProgram(graph, parameters).run(empty)["logits"].shape == (0, 3)


def test_threads_take_turns() -> None:
    graph, parameters = _classifier()
    program = GraphProgram(graph, parameters)
    wanted = {length: program.run(_inputs(2, length))["logits"] for length in range(1, 9)}
    wrong: list[int] = []

    def ask(length: int) -> None:
        found = [program.run(_inputs(2, length))["logits"] for _ in range(50)]
        wrong.extend(length for each in found if not np.array_equal(each, wanted[length]))

    asking = [Thread(target=ask, args=(length,)) for length in wanted]
    for each in asking:
        each.start()
    for each in asking:
        each.join()
    assert not wrong


def test_activations_have_a_bound() -> None:
    graph, parameters = _classifier()
    program = GraphProgram(graph, parameters, most_activation_bytes=10_000)
    program.run(_inputs(1, 10))
    assert 0 < program.activation_bytes <= 10_000
    with pytest.raises(MemoryError, match="at most 10000 bytes"):
        program.run(_inputs(10, 100))


def test_programs_lend_each_other_memory() -> None:
    graph, parameters = _classifier()
    workspaces = Workspaces()
    first, second = (GraphProgram(graph, parameters, workspaces=workspaces) for _ in range(2))
    first.run(_inputs(1, 10))
    least = workspaces.bytes
    second.run(_inputs(3, 10))
    assert least < workspaces.bytes == first.activation_bytes == second.activation_bytes
    most = workspaces.bytes
    with pytest.raises(IndexError):
        first.run({**_inputs(1, 10), "input_ids": np.full((1, 10), 10**6)})
    for program in (first, second):
        program.run(_inputs(3, 10))
    assert workspaces.bytes == most


def test_activations_share_memory() -> None:
    """Of a chain of many values two are needed at once."""
    names = [f"v{at}" for at in range(30)]
    nodes = [Node("relu", (Operand.input("x"),), {}, ("v0",))]
    nodes += [Node("tanh", (Operand.value(before),), {}, (name,)) for before, name in pairwise(names)]
    graph = Graph(
        "test", ("batch",), (GraphInput("x", "float32", ("batch", 1024)),), tuple(nodes), (GraphOutput("y", "v29"),)
    )
    program = GraphProgram(graph, {})
    program.run({"x": np.ones((1, 1024), np.float32)})
    assert program.activation_bytes == 2 * 4096


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input_ids": None}, "input input_ids: expected it, found attention_mask"),
        ({"input_ids": np.zeros((2, 3), np.int32)}, "input input_ids: expected int64, found int32"),
        ({"input_ids": np.zeros(3, np.int64)}, r"input input_ids: expected 2 axes, found \[3\]"),
        (
            {"attention_mask": np.zeros((3, 3), np.int64)},
            r"input attention_mask: expected a size of 2 .* found \[3, 3\]",
        ),
        ({"attention_mask": np.zeros((2, 4), np.int64)}, r"attention: expected a mask \[2, 3\], found \[2, 4\]"),
    ],
)
def test_wrong_inputs_are_refused(change: dict[str, Any], words: str) -> None:
    graph, parameters = _classifier()
    inputs = {name: value for name, value in {**_inputs(2, 3), **change}.items() if value is not None}
    with pytest.raises(ValueError, match=words):
        GraphProgram(graph, parameters).run(inputs)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("head.weight", None, "parameter head.weight: expected it"),
        (
            "head.weight",
            np.zeros((3, 9), np.float32),
            r"node 8 \(linear\): operand 0: expected \[..., inputs\] for head",
        ),
        ("head.weight", np.zeros(9, np.float32), r"node 8 \(linear\)"),
        ("head.weight", np.zeros((3, 8), np.int64), r"node 8 \(linear\): operand 1: expected a weight, found int64"),
        (
            "head.weight",
            np.zeros((3, 8), np.float64),
            "expected float32, int64, bool, or bfloat16 as uint16, got float64",
        ),
        ("norm.weight", np.zeros(7, np.float32), r"node 4 \(add_layer_norm\): operand 2: expected \[8\], found \[7\]"),
        ("norm.weight", np.zeros(8, np.int64), r"node 4 \(add_layer_norm\): operand 2: expected float32"),
        ("norm.weight", blocks_of(np.ones((8, 8), np.float32))[0], r"node 4 .* expected an array .* found norm.weight"),
        ("base_model.table.weight", np.zeros((11, 7), np.float32), r"node 1 \(reshape\)"),
        ("base_model.table.weight", blocks_of(np.ones((11, 8), np.float32))[0], "all of which is in memory"),
    ],
)
def test_wrong_parameters_are_refused(name: str, value: Any, words: str) -> None:
    graph, parameters = _classifier()
    changed = {**parameters, name: value}
    if value is None:
        del changed[name]
    with pytest.raises(ValueError, match=words):
        GraphProgram(graph, changed).run(_inputs(2, 3))


@pytest.mark.parametrize(
    ("op", "weights", "attributes"),
    [("linear", ["w", None], {"activation": "none"}), ("gated_linear", ["w", "w"], {"activation": "silu"})],
)
@pytest.mark.parametrize("factor", ["blocks", "table", "rows"])
def test_a_product_refuses_a_factor_that_is_no_array(
    op: str, weights: list[str | None], attributes: dict[str, Any], factor: str
) -> None:
    """What isn't an array has no address to read it from."""
    square = _values(1, FEATURES, FEATURES)
    x = _Rows(square) if factor == "rows" else blocks_of(square, "int8", table=factor == "table")[0]
    operands = [_parameter("x"), *(name and _parameter(name) for name in weights)]
    graph = Graph("test", ("batch",), (), (Node(op, tuple(operands), attributes, ("v0",)),), (GraphOutput("y", "v0"),))
    with pytest.raises(ValueError, match=rf"node 0 \({op}\): operand 0: expected an array of float32, found a weight"):
        GraphProgram(graph, {"x": x, "w": square}).run({})


def test_weights_of_two_layers_in_one_operator_are_refused() -> None:
    parts = _Parts()
    parts.native["up"] = blocks_of(_sparse(3, WIDE, FEATURES), layer=1)[0]
    with pytest.raises(ValueError, match=r"gated_linear: expected weights of one model layer, found \[0, 1\]"):
        GraphProgram(_feed_forward(), parts.native)


TOO_LARGE = [2**20, 2**20, 2**24]
"""Sizes whose product is 0 in 64 bits."""

WRONG = [
    ("reshape", [(2, 3)], {"shape": [5]}),
    ("reshape", [(2, 3)], {"shape": [-1, 0]}),
    ("reshape", [(2, 3)], {"shape": [2**31 - 1, 2**31 - 1, 2**31 - 1]}),
    ("reshape", [(0, 3)], {"shape": [-1, 0]}),
    ("reshape", [(0, 3)], {"shape": [0, 2**31 - 1, 2**31 - 1]}),
    ("reshape", [(0, 3)], {"shape": TOO_LARGE}),
    ("permute", [(2, 3)], {"axes": [0, 0]}),
    ("permute", [(2, 3)], {"axes": [0]}),
    ("slice", [(2, 3)], {"axis": 2, "start": 0, "end": None, "step": 1}),
    ("slice", [(2, 3)], {"axis": 0, "start": 0, "end": None, "step": 0}),
    ("expand", [(2, 3)], {"shape": [3]}),
    ("expand", [(2, 3)], {"shape": [3, 3]}),
    ("expand", [(1, 1)], {"shape": [2**31 - 1, 2**31 - 1]}),
    ("expand", [(1, 1, 1)], {"shape": TOO_LARGE}),
    ("expand", [(1, 1, 1)], {"shape": [2**20, 2**20, 2**23]}),
    ("concat", [(2, 3), (2, 4)], {"axis": 0}),
    ("concat", [(2, 3), (2,)], {"axis": 0}),
    ("concat", [], {"axis": 0}),
    ("full", [], {"shape": [2**31 - 1, 2**31 - 1], "value": 0, "dtype": "float32"}),
    ("full", [], {"shape": TOO_LARGE, "value": 0, "dtype": "float32"}),
    ("full", [], {"shape": [2**20, 2**20, 2**23], "value": 0, "dtype": "float32"}),
    ("full", [], {"shape": [-1], "value": 0, "dtype": "float32"}),
    ("full", [], {"shape": [1], "value": 0, "dtype": "float16"}),
    ("arange", [], {"start": 0, "end": 5, "step": -1}),
    ("add", [(2, 3), (4,)], {"scalar": None}),
    ("add", [(2, 3), (3,)], {"scalar": 1}),
    ("add", [(2, 3), None], {"scalar": None}),
    ("add", [None, (2, 3)], {"scalar": None}),
    ("matmul", [(2, 3), (2, 3)], {}),
    ("matmul", [(2,), (2,)], {}),
    ("softmax", [(2, 3)], {"axis": 2}),
    ("mean", [(2, 3)], {"axes": [0, 2], "keep": False}),
    ("mean", [(2, 3)], {"axes": [], "keep": False}),
    ("mean", [(0, 3)], {"axes": [0], "keep": False}),
    ("argmax", [(2, 0)], {"axis": 1}),
    ("layer_norm", [()], {"epsilon": 1e-5}),
    ("add_layer_norm", [(2, 3), (2, 1)], {"epsilon": 1e-5}),
    ("linear", [(2, 3), (3, 3)], {"activation": "none"}),
    ("embedding", [(2, 3), (3,)], {}),
    ("take", [(2, 3), (3,)], {"axis": 0}),
    ("gather", [(2, 3), (3,)], {"axis": 0}),
    ("where", [(2, 3), (2, 3), (2, 3)], {}),
    ("cast", [(2, 3)], {"dtype": "complex64"}),
    ("gelu", [(2, 3)], {"approximate": "no"}),
    ("relu", [None], {}),
    ("logical_not", [(2, 3)], {}),
    ("nonsense", [(2, 3)], {}),
]


@pytest.mark.parametrize(("op", "shapes", "attributes"), WRONG)
def test_wrong_nodes_are_refused(op: str, shapes: list[Any], attributes: dict[str, Any]) -> None:
    """What the reader of a graph can't know is found when shapes are, and never computed."""
    arrays = {f"x{at}": np.ones(shape, np.float32) for at, shape in enumerate(shapes) if shape is not None}
    inputs = tuple(GraphInput(name, "float32", array.shape) for name, array in arrays.items())
    operands = tuple(None if shape is None else Operand.input(f"x{at}") for at, shape in enumerate(shapes))
    outputs = ("v0", "v1") if op.startswith("add_") else ("v0",)
    graph = Graph("test", ("batch",), inputs, (Node(op, operands, attributes, outputs),), (GraphOutput("y", "v0"),))
    with pytest.raises(ValueError, match="expected"):
        GraphProgram(graph, {}).run(arrays)


def test_operands_that_broadcast_to_too_many_elements_are_refused() -> None:
    value, one = Operand.value, [1, 1, 1]
    nodes = (
        Node("full", (), {"shape": one, "value": 1, "dtype": "float32"}, ("v0",)),
        Node("expand", (value("v0"),), {"shape": [*TOO_LARGE[:2], 1]}, ("v1",)),
        Node("expand", (value("v0"),), {"shape": [1, 1, TOO_LARGE[2]]}, ("v2",)),
        Node("add", (value("v1"), value("v2")), {"scalar": None}, ("v3",)),
        Node("slice", (value("v3"),), {"axis": 0, "start": 0, "end": 0, "step": 1}, ("v4",)),
    )
    graph = Graph("test", ("batch",), (GraphInput("x", "float32", ("batch",)),), nodes, (GraphOutput("y", "v4"),))
    with pytest.raises(ValueError, match=r"node 3 \(add\): expected at most 2\^40 elements, found \[1048576, "):
        GraphProgram(graph, {}).run({"x": np.ones(1, np.float32)})


WRONG_ATTENTIONS = [
    ([(1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 4)], {}),
    ([(1, 2, 3, 4), (2, 2, 3, 4), (2, 2, 3, 4)], {}),
    ([(1, 3, 3, 4), (1, 2, 3, 4), (1, 2, 3, 4)], {}),
    ([(1, 2, 3, 4), (1, 0, 3, 4), (1, 0, 3, 4)], {}),
    ([(1, 2, 3, 4), (1, 2, 5, 4), (1, 2, 5, 4)], {"causal": True}),
    ([(1, 2, 3, 257), (1, 2, 3, 257), (1, 2, 3, 4)], {}),
    ([(2, 3, 4), (2, 3, 4), (2, 3, 4)], {}),
    ([(1, 2, 3, 4)] * 3, {"window": -1}),
    ([(1, 2, 3, 4)] * 3, {"layout": "tbhd"}),
    ([(1, 2, 3, 4)] * 3, {"index": -1}),
]


@pytest.mark.parametrize(("shapes", "changes"), WRONG_ATTENTIONS)
def test_wrong_attentions_are_refused(shapes: list[Any], changes: dict[str, Any]) -> None:
    attributes = {"scale": 1.0, "causal": False, "window": 0, "softcap": 0.0, "index": 0, "layout": "bhtd", **changes}
    test_wrong_nodes_are_refused("attention", [*shapes, None], attributes)


def test_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEIGHTPAGER_THREADS", "3")
    assert thread_count() == 3
    for wrong in ("0", "-1", "many", "257"):
        monkeypatch.setenv("WEIGHTPAGER_THREADS", wrong)
        with pytest.raises(ConfigError, match="WEIGHTPAGER_THREADS: expected 1 to 256"):
            thread_count()
    monkeypatch.delenv("WEIGHTPAGER_THREADS")
    assert thread_count() >= 1


def test_a_quota_of_processor_time_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WEIGHTPAGER_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setattr(processor, "core_quota", lambda: 2)
    assert thread_count() == 2
