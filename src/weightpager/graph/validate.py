"""A graph's document, field by field: from JSON values to a `Graph`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from weightpager.errors import BundleFormatError
from weightpager.graph.graph import DTYPES, OPERAND_KINDS, Array, Graph, GraphInput, GraphOutput, Node, Operand
from weightpager.graph.operators import (
    DIMENSION_LISTS,
    DIMENSIONS,
    FULL_SHAPE,
    MOST_AXES,
    MOST_JOINED,
    OPERATORS,
    Operator,
    is_number,
    is_whole,
)


@dataclass(frozen=True)
class Field:
    """A value at a place in a document of that name, such as ``nodes[3].op``."""

    file: str
    place: str
    value: Any

    def refuse(self, expected: object) -> NoReturn:
        """Raise a `BundleFormatError` that names the place and what was found."""
        raise BundleFormatError(self.file, self.place or "document", expected, repr(self.value)[:80])

    def members(self, *names: str) -> dict[str, Field]:
        """The fields of an object that has exactly these keys."""
        if not isinstance(self.value, dict) or self.value.keys() != set(names):
            found = sorted(self.value) if isinstance(self.value, dict) else self.value
            expected = f"an object of {', '.join(names)}" if names else "an empty object"
            raise BundleFormatError(self.file, self.place or "document", expected, repr(found)[:120])
        return {name: Field(self.file, f"{self.place}.{name}".lstrip("."), self.value[name]) for name in names}

    def items(self, most: int, least: int = 0) -> Iterator[Field]:
        """The entries of a list of bounded length."""
        if not isinstance(self.value, list) or not least <= len(self.value) <= most:
            found = f"{len(self.value)} entries" if isinstance(self.value, list) else repr(self.value)[:80]
            raise BundleFormatError(self.file, self.place, f"a list of {least} to {most} entries", found)
        return (Field(self.file, f"{self.place}[{at}]", each) for at, each in enumerate(self.value))

    def text(self, most: int = 64) -> str:
        """A printable string of at least one and at most so many characters."""
        if not isinstance(self.value, str) or not 0 < len(self.value) <= most or not self.value.isprintable():
            self.refuse(f"a printable string of 1 to {most} characters")
        return self.value

    def one_of(self, *choices: str) -> str:
        if not isinstance(self.value, str) or self.value not in choices:
            self.refuse(f"one of {', '.join(choices)}")
        return self.value


MOST_NODES = 20_000
MOST_CONSTANTS = 256

MOST_CONSTANT_BYTES = 64 * 2**10
"""Bytes that all constants may have together."""

_MOST_INPUTS = 8
_VALUE = re.compile(r"v(0|[1-9][0-9]{0,6})")


def read_document(document: Field, form: int) -> Graph:
    """The graph that a document says."""
    parts = document.members("format", "kind", "dims", "inputs", "nodes", "outputs", "constants")
    if type(parts["format"].value) is not int or parts["format"].value != form:
        parts["format"].refuse(form)
    dims = tuple(each.one_of(*DIMENSIONS) for each in parts["dims"].items(len(DIMENSIONS), 1))
    if dims not in DIMENSION_LISTS:
        parts["dims"].refuse(" or ".join(str(list(each)) for each in DIMENSION_LISTS))
    inputs = tuple(_input(each, dims) for each in parts["inputs"].items(_MOST_INPUTS, 1))
    _check_once(parts["inputs"], [each.name for each in inputs])
    constants = _constants(parts["constants"])
    known = _Known({each.name for each in inputs}, set(), len(constants), dims)
    nodes = tuple(_node(each, known) for each in parts["nodes"].items(MOST_NODES, 1))
    _check_attentions(parts["nodes"], nodes)
    outputs = tuple(_output(each, known) for each in parts["outputs"].items(_MOST_INPUTS, 1))
    _check_once(parts["outputs"], [each.name for each in outputs])
    return Graph(parts["kind"].text(), dims, inputs, nodes, outputs, constants)


class _Known:
    def __init__(self, inputs: set[str], values: set[str], constants: int, dims: tuple[str, ...]) -> None:
        self.inputs, self.values, self.constants, self.dims = inputs, values, constants, dims


def _check_once(where: Field, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise BundleFormatError(where.file, where.place, "each name once", f"{name!r} twice")


def _check_dims(shape: Field, dims: tuple[str, ...]) -> None:
    for size in shape.value:
        if isinstance(size, str) and size not in dims:
            shape.refuse(f"dimensions that the graph has: {', '.join(dims)}")


def _input(entry: Field, dims: tuple[str, ...]) -> GraphInput:
    parts = entry.members("name", "dtype", "shape")
    if not FULL_SHAPE.accepts(parts["shape"].value):
        parts["shape"].refuse(FULL_SHAPE.words)
    _check_dims(parts["shape"], dims)
    return GraphInput(parts["name"].text(), parts["dtype"].one_of("int64", "float32"), tuple(parts["shape"].value))


def _output(entry: Field, known: _Known) -> GraphOutput:
    parts = entry.members("name", "value")
    if not isinstance(parts["value"].value, str) or parts["value"].value not in known.values:
        parts["value"].refuse("a value that a node gives")
    return GraphOutput(parts["name"].text(), parts["value"].value)


def _node(entry: Field, known: _Known) -> Node:
    parts = entry.members("op", "inputs", "attributes", "outputs")
    name = parts["op"].text()
    operator = OPERATORS.get(name)
    if operator is None:
        parts["op"].refuse("a known operator")
    least, most = (1, MOST_JOINED) if operator.joins else (len(operator.inputs), len(operator.inputs))
    inputs = tuple(_operand(each, known) for each in parts["inputs"].items(most, least))
    required = len(inputs) - operator.optional
    for at, operand in enumerate(inputs[:required]):
        if operand is None:
            raise BundleFormatError(entry.file, f"{parts['inputs'].place}[{at}]", "an operand", "null")
    attributes = _attributes(parts["attributes"], operator, known.dims)
    if operator.scalar and (inputs[1] is None) == (attributes["scalar"] is None):
        entry.refuse("a second operand, or the attribute scalar, and not both")
    outputs = tuple(_new_value(each, known) for each in parts["outputs"].items(operator.outputs, operator.outputs))
    return Node(name, inputs, attributes, outputs)


def _operand(entry: Field, known: _Known) -> Operand | None:
    if entry.value is None:
        return None
    if not isinstance(entry.value, dict) or len(entry.value) != 1:
        entry.refuse("null, or an object of one key")
    ((kind, key),) = entry.value.items()
    here = Field(entry.file, f"{entry.place}.{kind[:16]}", key)
    if kind not in OPERAND_KINDS:
        entry.refuse(f"one of the keys {', '.join(OPERAND_KINDS)}")
    if kind == "constant":
        if not is_whole(key, 0, known.constants - 1):
            here.refuse(f"one of {known.constants} constants")
        return Operand.constant(key)
    name = here.text(1024)
    if kind == "value" and name not in known.values:
        here.refuse("a value of an earlier node")
    if kind == "input" and name not in known.inputs:
        here.refuse("an input of the graph")
    return Operand(kind, name)


def _new_value(entry: Field, known: _Known) -> str:
    name = entry.value
    if not isinstance(name, str) or not _VALUE.fullmatch(name) or name in known.values:
        entry.refuse("the letter v and a number, of no other value")
    known.values.add(name)
    return str(name)


def _attributes(entry: Field, operator: Operator, dims: tuple[str, ...]) -> dict[str, Any]:
    parts = entry.members(*operator.attributes)
    for name, kind in operator.attributes.items():
        value = parts[name].value
        if not kind.accepts(value):
            parts[name].refuse(kind.words)
        if name in ("shape", "start", "end"):
            sizes = value if isinstance(value, list) else [value]
            _check_dims(Field(entry.file, parts[name].place, sizes), dims)
    return {name: part.value for name, part in parts.items()}


def _check_attentions(where: Field, nodes: tuple[Node, ...]) -> None:
    numbers = [node.attributes["index"] for node in nodes if node.op == "attention"]
    if numbers != list(range(len(numbers))):
        raise BundleFormatError(where.file, where.place, "attentions numbered from 0 on", str(numbers)[:80])


def _constants(entry: Field) -> tuple[Array, ...]:
    left, constants = MOST_CONSTANT_BYTES, []
    for each in entry.items(MOST_CONSTANTS):
        constants.append(_constant(each, left))
        left -= constants[-1].nbytes
    return tuple(constants)


def _constant(entry: Field, left: int) -> Array:
    parts = entry.members("dtype", "shape", "data")
    dtype = np.dtype(DTYPES[parts["dtype"].one_of(*DTYPES)])
    shape, data = parts["shape"].value, parts["data"].value
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(is_whole(each, 1) for each in shape):
        parts["shape"].refuse("a list of sizes of at least 1")
    count = math.prod(shape)
    if count * dtype.itemsize > left:
        parts["shape"].refuse(f"at most {MOST_CONSTANT_BYTES} bytes of all constants")
    if not isinstance(data, list) or len(data) != count:
        parts["data"].refuse(f"a list of {count} numbers")
    if not all(_fits(each, dtype) for each in data):
        parts["data"].refuse(f"finite numbers of {dtype}")
    return np.array(data, dtype).reshape(shape)


def _fits(value: Any, dtype: np.dtype[Any]) -> bool:
    if dtype == np.bool_:
        return type(value) is bool
    if dtype == np.int64:
        return type(value) is int and is_number(value)
    return type(value) is float and is_number(value)
