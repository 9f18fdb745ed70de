"""Running a graph node by node."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weightpager.graph.graph import Array, Graph, Operand
from weightpager.graph.reference import elements, norms, products, shapes
from weightpager.graph.reference.attention import KeyValues, attention, rotary

FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "attention": attention,
    "rotary": rotary,
    **products.FUNCTIONS,
    **norms.FUNCTIONS,
    **elements.FUNCTIONS,
    **shapes.FUNCTIONS,
}
"""Operator → its function: operands in order, None for one that is left out; attributes by name."""

_SIZED = ("reshape", "expand", "full", "arange", "slice")
"""Operators with sizes among their attributes, where a dimension stands for a number."""


def run(
    graph: Graph,
    parameters: Mapping[str, Array],
    inputs: Mapping[str, Array],
    cache: KeyValues | None = None,
) -> dict[str, Array]:
    """A graph's outputs, by name.

    Args:
        graph: validated.
        parameters: float32 (whole numbers int64) by canonical name.
        inputs: by name. A mask of a causal graph covers earlier tokens, too.
        cache: keys and values of earlier tokens, which what is computed now is appended to; None if there are none.
    """
    dims = {
        size: inputs[each.name].shape[axis]
        for each in reversed(graph.inputs)
        for axis, size in reversed(tuple(enumerate(each.shape)))
        if isinstance(size, str)
    }
    values: dict[str, Array] = {}

    def operand(of: Operand | None) -> Array | None:
        if of is None:
            return None
        if isinstance(of.key, int):
            return graph.constants[of.key]
        return {"value": values, "input": inputs, "parameter": parameters}[of.kind][of.key]

    for node in graph.nodes:
        attributes = dict(node.attributes)
        if node.op in _SIZED:
            attributes = {name: _sized(value, dims) for name, value in attributes.items()}
        if node.op == "attention":
            attributes["cache"] = cache
        results = FUNCTIONS[node.op](*map(operand, node.inputs), **attributes)
        values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=True))
    return {each.name: values[each.value] for each in graph.outputs}


def _sized(value: Any, dims: Mapping[str, int]) -> Any:
    if isinstance(value, list):
        return [_sized(each, dims) for each in value]
    return dims.get(value, value) if isinstance(value, str) else value
