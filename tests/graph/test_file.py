"""A graph's file: what is written is read again, and what isn't a graph is refused by name."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphs import classifier
from weightpager.errors import BundleFormatError
from weightpager.graph import read_graph, write_graph
from weightpager.graph.file import MOST_BYTES


def test_what_is_written_is_read() -> None:
    graph = classifier()
    content = write_graph(graph)
    found = read_graph("g.json", content)
    assert found.nodes == graph.nodes
    assert (found.kind, found.dims, found.inputs, found.outputs) == (
        graph.kind,
        graph.dims,
        graph.inputs,
        graph.outputs,
    )
    assert all(np.array_equal(*pair) for pair in zip(found.constants, graph.constants, strict=True))
    assert write_graph(found) == content


def test_a_graph_tells_its_parameters_and_attentions() -> None:
    graph = classifier()
    assert list(graph.parameters()) == ["base_model.table.weight", "norm.weight", "head.weight"]
    assert [node.output for node in graph.attentions] == ["v2"]


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda d: d.update(format=2), "format"),
        (lambda d: d.update(format=True), "format"),
        (lambda d: d.update(extra=1), "document"),
        (lambda d: d.pop("nodes"), "document"),
        (lambda d: d.update(kind=""), "kind"),
        (lambda d: d.update(dims=["features"]), "dims"),
        (lambda d: d.update(dims=["batch", "features"]), "dims"),
        (lambda d: d.update(dims=["batch", "length", "features", "features"]), "dims"),
        (lambda d: d["inputs"][0].update(shape=["features"]), "inputs[0].shape"),
        (lambda d: d["nodes"][1]["attributes"].update(shape=["features", 1]), "nodes[1].attributes.shape"),
        (lambda d: d.update(dims=["batch"]), "inputs[0].shape"),
        (lambda d: d.update(nodes=[]), "nodes"),
        (lambda d: d["nodes"].extend([d["nodes"][0]] * 20_001), "nodes"),
        (lambda d: d["nodes"][0].update(op="system"), "nodes[0].op"),
        (lambda d: d["nodes"][0].update(op=["add"]), "nodes[0].op"),
        (lambda d: d["nodes"][0].update(inputs=[]), "nodes[0].inputs"),
        (lambda d: d["nodes"][0]["inputs"].insert(0, None), "nodes[0].inputs"),
        (lambda d: d["nodes"][0].update(inputs=[None, None]), "nodes[0].inputs[0]"),
        (lambda d: d["nodes"][0].update(outputs=["v0", "v99"]), "nodes[0].outputs"),
        (lambda d: d["nodes"][0].update(outputs=["w0"]), "nodes[0].outputs[0]"),
        (lambda d: d["nodes"][1].update(outputs=["v0"]), "nodes[1].outputs[0]"),
        (lambda d: d["nodes"][1].update(inputs=[{"value": "v3"}]), "nodes[1].inputs[0].value"),
        (lambda d: d["nodes"][1].update(inputs=[{"value": "v1"}]), "nodes[1].inputs[0].value"),
        (lambda d: d["nodes"][1].update(inputs=[{"input": "pixels"}]), "nodes[1].inputs[0].input"),
        (lambda d: d["nodes"][1].update(inputs=[{"constant": 1}]), "nodes[1].inputs[0].constant"),
        (lambda d: d["nodes"][1].update(inputs=[{"constant": -1}]), "nodes[1].inputs[0].constant"),
        (lambda d: d["nodes"][1].update(inputs=[{"file": "x"}]), "nodes[1].inputs[0]"),
        (lambda d: d["nodes"][1].update(inputs=[{"parameter": 3}]), "nodes[1].inputs[0].parameter"),
        (lambda d: d["nodes"][1].update(inputs=[{"parameter": "a\nb"}]), "nodes[1].inputs[0].parameter"),
        (lambda d: d["nodes"][1]["attributes"].update(shape=[-1, -1]), "nodes[1].attributes.shape"),
        (lambda d: d["nodes"][1]["attributes"].update(shape=["width"]), "nodes[1].attributes.shape"),
        (lambda d: d["nodes"][1]["attributes"].update(shape=[2**31]), "nodes[1].attributes.shape"),
        (lambda d: d["nodes"][1]["attributes"].update(shape=[1] * 9), "nodes[1].attributes.shape"),
        (lambda d: d["nodes"][1]["attributes"].update(axis=0), "nodes[1].attributes"),
        (lambda d: d["nodes"][1].update(attributes={}), "nodes[1].attributes"),
        (lambda d: d["nodes"][2]["attributes"].update(index=1), "nodes"),
        (lambda d: d["nodes"][2]["attributes"].update(causal=1), "nodes[2].attributes.causal"),
        (lambda d: d["nodes"][2]["attributes"].update(scale=0), "nodes[2].attributes.scale"),
        (lambda d: d["nodes"][5]["attributes"].update(scalar=2.0), "nodes[5]"),
        (lambda d: d["nodes"][5].update(inputs=[{"value": "v5"}, None]), "nodes[5]"),
        (lambda d: d["nodes"][8]["attributes"].update(activation="swish"), "nodes[8].attributes.activation"),
        (lambda d: d["outputs"][0].update(value="v10"), "outputs[0].value"),
        (lambda d: d["outputs"].append(d["outputs"][0]), "outputs"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "inputs"),
        (lambda d: d["constants"][0].update(shape=[9]), "constants[0].data"),
        (lambda d: d["constants"][0].update(shape=[2**20, 2**20]), "constants[0].shape"),
        (lambda d: d["constants"][0].update(shape=[0, 2**31]), "constants[0].shape"),
        (lambda d: d["constants"][0].update(dtype="int64"), "constants[0].data"),
        (lambda d: d["constants"][0].update(dtype="object"), "constants[0].dtype"),
        (lambda d: d["constants"][0]["data"].__setitem__(0, 1e300), "constants[0].data"),
    ],
)
def test_what_is_no_graph_is_refused_by_name(change: Change, field: str) -> None:
    document = json.loads(write_graph(classifier()))
    change(document)
    with pytest.raises(BundleFormatError) as error:
        read_graph("g.json", json.dumps(document).encode())
    assert error.value.field == field


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[" * 2**16, b'{"format":1,"format":1}', b'{"format":NaN}', b'{"format":' + b"9" * 10**4 + b"}"],
)
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"g\.json: document"):
        read_graph("g.json", content)


def test_a_file_beyond_all_bounds_is_refused_unread() -> None:
    with pytest.raises(BundleFormatError, match="size: expected at most"):
        read_graph("g.json", b" " * (MOST_BYTES + 1))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_a_graph_with_any_field_replaced_is_read_or_refused(data: st.DataObject) -> None:
    document = json.loads(write_graph(classifier()))
    here: Any = document
    for _ in range(data.draw(st.integers(0, 5))):
        keys = list(here) if isinstance(here, dict) else range(len(here)) if isinstance(here, list) else []
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        outer, here = here, here[key]
        if data.draw(st.booleans()):
            outer[key] = data.draw(_JSON)
            break
    try:
        graph = read_graph("g.json", json.dumps(document).encode())
    except BundleFormatError:
        return
    assert read_graph("g.json", write_graph(graph)).nodes == graph.nodes
