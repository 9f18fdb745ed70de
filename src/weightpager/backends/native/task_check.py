"""Whether tasks have the parameters that their graphs take, and give the outputs that answers need: by shapes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias, cast

import numpy as np

from weightpager.backends.native.operands import Blocks, ProgramParameter, RowsOnDemand
from weightpager.backends.native.program import Program, stages
from weightpager.bundle import Bundle, TaskEntry, TaskKind, WeightEntry
from weightpager.bundle.files.tensor_header import Header, TensorInfo
from weightpager.bundle.format.manifest import FORMS
from weightpager.bundle.format.row_table import RowTableEntry
from weightpager.bundle.format.whole_weight import WholeWeightEntry, stored_in
from weightpager.errors import BundleFormatError
from weightpager.graph import Graph, Operand
from weightpager.graph.file import graph_file
from weightpager.kernels import PagedWeight
from weightpager.page_dtype import PageDtype, block_bytes

Stored: TypeAlias = "TensorInfo | RowTableEntry | WeightEntry | WholeWeightEntry"
"""What a bundle says of a parameter: its shape, and in what it lies."""

_BATCH, _LENGTH = 2, 3
"""Of the call that is planned: sizes other than 1, which fits every axis."""

_DTYPES = {"float32": "float32", "bfloat16": "uint16", "bool": "bool"} | dict.fromkeys(
    ("int8", "int16", "int32", "int64"), "int64"
)
"""The arrays that programs take in place of stored ones."""

_NODE = re.compile(r"node (\d+) \(\w+\): ")


def check_tasks(bundle: Bundle, graphs: Mapping[TaskKind, Graph], tokens: int, headers: Mapping[str, Header]) -> None:
    """Refuse tasks whose answers would be wrong, or fail, for the shapes of what the bundle holds.

    Args:
        bundle: with the tasks.
        graphs: of their kinds.
        tokens: how many the model's configuration says that it knows; of texts.
        headers: by task, the tensors that it has: those of all tasks, and its own.

    Raises:
        BundleFormatError: a parameter is missing or doesn't fit its graph, or an output doesn't fit classes or tokens.
    """
    planned: dict[tuple[object, ...], dict[str, TensorInfo]] = {}  # most tasks have the same shapes
    for name, header in headers.items():
        task = bundle.task(name)
        graph = graphs[task.kind]
        stored = _stored(bundle, graph, task, header)
        shapes = task.kind, *((key, each) for key, each in stored.items() if isinstance(each, TensorInfo))
        if shapes not in planned:
            _check_tables(task, graph, stored, 0 if task.takes_images else tokens)
            planned[shapes] = _planned(bundle, graph, stored)
        _check_outputs(task, planned[shapes], tokens)


def _stored(bundle: Bundle, graph: Graph, task: TaskEntry, header: Header) -> dict[str, Stored]:
    """The parameters that a graph takes."""
    whole = {each.name: each for each in stored_in(header, bundle.manifest.whole_weights)}
    paged = {f"{weight.name}.weight": weight for weight in bundle.manifest.weights}
    tables = {table.name: table for table in bundle.manifest.row_tables}
    known: dict[str, Stored] = {**tables, **header, **whole, **paged}
    stored = {}
    for name in graph.parameters():
        if name not in known:
            raise BundleFormatError(f"tasks/{task.name}", name, f"a value, as {graph_file(task.kind)} takes it", "none")
        stored[name] = found = known[name]
        if isinstance(found, TensorInfo) and found.dtype not in _DTYPES:
            raise BundleFormatError(f"tasks/{task.name}", name, f"one of {', '.join(_DTYPES)}", found.dtype)
    return stored


def _check_tables(task: TaskEntry, graph: Graph, stored: Mapping[str, Stored], tokens: int) -> None:
    """See that every token has a row."""
    for node in graph.nodes:
        if node.op == "embedding" and node.inputs[1] == Operand.input("input_ids"):
            table = node.inputs[0]
            if table is not None and table.kind == "parameter" and (rows := _rows(stored[str(table.key)])) < tokens:
                expected = f"{tokens} rows, as many as there are tokens"
                raise BundleFormatError(f"tasks/{task.name}", str(table.key), expected, rows)


def _rows(of: Stored) -> int:
    if isinstance(of, TensorInfo):
        return of.shape[0] if of.shape else 0
    return of.out_features if isinstance(of, WeightEntry) else of.rows


def _planned(bundle: Bundle, graph: Graph, stored: Mapping[str, Stored]) -> dict[str, TensorInfo]:
    """The graph's outputs by name, as a call would give them."""
    blank = {name: _blank(bundle, each) for name, each in stored.items()}
    stage, outputs = graph, {}
    try:
        for stage in stages(graph, blank):
            for name, (dtype, shape) in Program(stage, blank).shapes(_BATCH, _LENGTH).items():
                outputs[name] = TensorInfo(dtype, tuple(shape))
    except ValueError as error:
        raise _refusal(stage, str(error)) from error
    return outputs


def _refusal(graph: Graph, text: str) -> BundleFormatError:
    """What native code refuses, with the field that it is about."""
    node, field = _NODE.match(text), "nodes"
    if node is not None:
        at, text = graph.nodes[int(node[1])], text[node.end() :]
        names = [str(each.key) for each in at.inputs if each is not None and each.kind == "parameter"]
        field = f"{at.output}: {at.op}{' of ' if names else ''}{', '.join(names)}"
    where, _, rest = text.rpartition("expected ")
    expected, _, found = rest.partition(", found ")
    return BundleFormatError(
        graph_file(graph.kind), f"{field}: {where}".strip(": ")[:400], expected, found or "another shape"
    )


def _check_outputs(task: TaskEntry, found: Mapping[str, TensorInfo], tokens: int) -> None:
    """See that logits are those of the classes or tokens, and hidden states those of each token."""
    form, (what, count) = FORMS[task.kind], _labels(task, tokens)
    axes = (_BATCH,) if form.labels == "one" else (_BATCH, _LENGTH)
    checked = {"logits"} if task.takes_images else {"logits", "hidden"}
    for name, output in found.items():
        wanted = (*axes, count) if name == "logits" else (_BATCH, _LENGTH, *output.shape[-1:])
        if name in checked and output != TensorInfo("float32", wanted):
            expected = f"float32 {list(wanted)} for {_BATCH} inputs{what if name == 'logits' else ''}"
            raise BundleFormatError(f"tasks/{task.name}", name, expected, f"{output.dtype} {list(output.shape)}")


def _labels(task: TaskEntry, tokens: int) -> tuple[str, int]:
    if FORMS[task.kind].labels == "none":
        return f" and {tokens} tokens", tokens
    return f" and {len(task.classes)} classes", len(task.classes)


def _blank(bundle: Bundle, of: Stored) -> ProgramParameter:
    """A parameter of which only the shape is right, in memory that is never touched."""
    if isinstance(of, TensorInfo):
        return np.empty(of.shape, _DTYPES[of.dtype])
    if isinstance(of, RowTableEntry):
        return cast(RowsOnDemand, of)  # as many rows and columns; none is looked up
    if isinstance(of, WholeWeightEntry):
        return Blocks(_blank_weight(bundle, of.rows, of.columns, of.dtype), table=True)
    return Blocks(_blank_weight(bundle, of.out_features, of.in_features, bundle.manifest.dtype), of.layer)


def _blank_weight(bundle: Bundle, rows: int, columns: int, dtype: PageDtype) -> PagedWeight:
    block, nothing = bundle.manifest.block_shape, np.empty(0, np.int32)
    return PagedWeight(
        arena=np.empty((0, block_bytes(block, dtype)), np.uint8),
        page_table=nothing,
        crow_indices=np.zeros(-(-rows // block.rows) + 1, np.int32),
        col_indices=nothing,
        locations=nothing,
        out_features=rows,
        in_features=columns,
        block_rows=block.rows,
        block_cols=block.cols,
        dtype=dtype,
    )
