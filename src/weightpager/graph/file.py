"""A graph's file: canonical JSON, and a reader that takes nothing but what the format says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from weightpager.errors import BundleFormatError
from weightpager.graph.graph import Array, Graph, Node
from weightpager.graph.validate import Field, read_document

FORMAT = 1

MOST_BYTES = 16 * 2**20
"""Bytes that a graph's file may have."""


_PREFIX, _SUFFIX = "model/graph-", ".json"


FEATURES = "features"
"""The kind of the graph from pictures to their features, which is no kind of tasks."""


def graph_file(kind: str) -> str:
    return f"{_PREFIX}{kind}{_SUFFIX}"


def kind_of_file(name: str) -> str | None:
    """The kind of tasks whose graph a bundle's file is, or `FEATURES`; None if it is none."""
    graph = name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    return name.removeprefix(_PREFIX).removesuffix(_SUFFIX) if graph else None


def write_graph(graph: Graph) -> bytes:
    """A graph's file: the same bytes for the same graph."""
    document = {
        "format": FORMAT,
        "kind": graph.kind,
        "dims": list(graph.dims),
        "inputs": [{"name": each.name, "dtype": each.dtype, "shape": list(each.shape)} for each in graph.inputs],
        "nodes": [_node(node) for node in graph.nodes],
        "outputs": [{"name": each.name, "value": each.value} for each in graph.outputs],
        "constants": [_constant(each) for each in graph.constants],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def read_graph(name: str, content: bytes, kind: str | None = None) -> Graph:
    """Validate a graph's file, which must be of this kind of tasks, if one is given.

    What it does not check needs the parameters: that they exist, that shapes fit, and how many elements a value has. A
    `BundleFormatError` names the first field that is wrong.
    """
    if len(content) > MOST_BYTES:
        raise BundleFormatError(name, "size", f"at most {MOST_BYTES} bytes", len(content))
    try:
        document = json.loads(content, parse_constant=_refuse, object_pairs_hook=_each_once)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise BundleFormatError(name, "document", "JSON", str(error)[:120]) from None
    graph = read_document(Field(name, "", document), FORMAT)
    if kind is not None and graph.kind != kind:
        raise BundleFormatError(name, "kind", kind, graph.kind)
    return graph


def _node(node: Node) -> dict[str, Any]:
    return {
        "op": node.op,
        "inputs": [None if each is None else {each.kind: each.key} for each in node.inputs],
        "attributes": dict(node.attributes),
        "outputs": list(node.outputs),
    }


def _constant(array: Array) -> dict[str, Any]:
    return {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.reshape(-1).tolist()}


def _refuse(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _each_once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found
