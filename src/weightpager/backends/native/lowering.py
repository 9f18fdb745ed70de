"""From a graph to the native module's program: names become numbers, and what it lacks is put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

import weightpager.kernels._native as _native
from weightpager.graph import Graph, Node, Operand
from weightpager.graph.operators import WEIGHTS
from weightpager.kernels import PagedWeight
from weightpager.kernels.native import native_weight
from weightpager.kernels.rows import RowSource
from weightpager.page_dtype import ENCODINGS

Array: TypeAlias = npt.NDArray[Any]
"""float32, int64 or bool; uint16 holds bfloat16."""

BFLOAT16 = np.dtype(np.uint16)

_DTYPES = {
    np.dtype(np.float32): "float32",
    np.dtype(np.int64): "int64",
    np.dtype(np.bool_): "bool",
    BFLOAT16: "bfloat16",
}


@dataclass(frozen=True, eq=False)
class Blocks:
    """A weight in blocks.

    Attributes:
        weight: the weight as kernels take it.
        layer: the model layer whose pages it lies in; None if it is always in memory.
        table: all its blocks are there, a row of them a page, so that its rows can be looked up, too.
        low_rank: ``(down [rank, in], up [out, rank])``, in pages of the weight's layer and of earlier ones: their
            product is added to the weight.
    """

    weight: PagedWeight
    layer: int | None = None
    table: bool = False
    low_rank: tuple[Blocks, Blocks] | None = None


ProgramParameter: TypeAlias = Array | Blocks | RowSource
"""A parameter, as a program takes it; `StoredParameter` is one as a bundle's file has it."""


def dtype_name(array: Array) -> str:
    """As the native module calls an array's dtype. Raises `ValueError` of one that it can't take."""
    name = _DTYPES.get(array.dtype)
    if name is None:
        raise ValueError(f"expected float32, int64, bool, or bfloat16 as uint16, got {array.dtype}")
    return name


def widened(array: Array) -> Array:
    """bfloat16 as float32; another array as it is."""
    return ENCODINGS["bfloat16"].widen(array) if array.dtype == BFLOAT16 else array


_DIMENSIONS = {"batch": -(2**63) + 1, "length": -(2**63) + 2, "features": -(2**63) + 3}
_OPEN = -(2**63) + 4


class Lowering:
    """Puts a native program together.

    Attributes:
        native: the program.
        ends: the number of the program's nodes behind each of the graph's nodes.
        arrays: the arrays that the program points to.
        values: the program's number of each of the graph's values, by name.
    """

    def __init__(self, native: _native.Program, graph: Graph, parameters: Mapping[str, ProgramParameter]) -> None:
        self.native, self._graph, self._parameters = native, graph, parameters
        self.ends: list[int] = []
        self.arrays: list[Array] = []
        self.values: dict[str, int] = {}
        self._numbers: dict[tuple[str, str | int, str], int] = {}
        self._count = self._nodes = 0

    def run(self) -> None:
        """Add inputs, parameters, nodes and outputs.

        Raises:
            ValueError: a parameter is missing, or isn't what its use needs.
        """
        for each in self._graph.inputs:
            self.native.add_input(each.name, each.dtype, _sizes(each.shape))
            self._numbers["input", each.name, ""] = self._next()
        for node in self._graph.nodes:
            self._add_parameters(node)
        for node in self._graph.nodes:
            self._add(node)
            self.ends.append(self._nodes)
        for output in self._graph.outputs:
            self.native.add_output(self.values[output.value])

    def _next(self, count: int = 1) -> int:
        self._count += count
        return self._count - count

    def _add_parameters(self, node: Node) -> None:
        for at, operand in enumerate(node.inputs):
            if operand is None or operand.kind not in ("parameter", "constant"):
                continue
            weight = at in WEIGHTS.get(node.op, ())
            key = self._key(operand, weight)
            if key in self._numbers:
                continue
            parameter = self._of(operand)
            self._add_parameter(key, parameter, weight)
            if weight and isinstance(parameter, Blocks) and parameter.low_rank is not None:
                for part, blocks in zip(("down", "up"), parameter.low_rank, strict=True):
                    self._add_parameter((key[0], key[1], part), blocks, True)

    def _key(self, operand: Operand, weight: bool) -> tuple[str, str | int, str]:
        """The key of an operand's number. A parameter in bfloat16 may be there twice, as it is and widened."""
        if operand.kind not in ("parameter", "constant"):
            return operand.kind, operand.key, ""
        parameter = self._of(operand)
        narrow = isinstance(parameter, np.ndarray) and parameter.dtype == BFLOAT16 and weight
        return operand.kind, operand.key, "bfloat16" if narrow else ""

    def _of(self, operand: Operand) -> ProgramParameter:
        if isinstance(operand.key, int):
            return self._graph.constants[operand.key]
        if operand.key not in self._parameters:
            raise ValueError(f"parameter {operand.key}: expected it, as the graph uses it, found none")
        return self._parameters[operand.key]

    def _add_parameter(self, key: tuple[str, str | int, str], parameter: ProgramParameter, weight: bool) -> None:
        """Add a parameter; in bfloat16 the native module takes weights alone, and others are widened once."""
        name = str(key[1])
        if isinstance(parameter, Blocks):
            self.native.add_weight(name, native_weight(parameter.weight), parameter.table)
        elif isinstance(parameter, np.ndarray):
            array = np.ascontiguousarray(parameter if weight else widened(parameter)).reshape(parameter.shape)
            self.arrays.append(array)
            self.native.add_array(name, array.ctypes.data, dtype_name(array), list(array.shape))
        else:
            self.native.add_rows(name, parameter.rows, parameter.columns)
        self._numbers[key] = self._next()

    def _number(self, node: Node, at: int) -> int:
        operand = node.inputs[at]
        if operand is None:
            return -1
        if operand.kind == "value":
            return self.values[str(operand.key)]
        return self._numbers[self._key(operand, at in WEIGHTS.get(node.op, ()))]

    def _emit(self, op: str, operands: list[int], attributes: Mapping[str, Any], outputs: int = 1) -> int:
        self.native.add_node(
            op,
            operands,
            {name: _attribute(name, value) for name, value in attributes.items() if value is not None or name == "end"},
            outputs,
        )
        self._nodes += 1
        return self._next(outputs)

    def _add(self, node: Node) -> None:
        operands = [self._number(node, at) for at in range(len(node.inputs))]
        if node.op in ("linear", "gated_linear"):
            operands += self._low_rank(node)
        first = self._emit(node.op, operands, node.attributes, len(node.outputs))
        for at, name in enumerate(node.outputs):
            self.values[name] = first + at

    def _low_rank(self, node: Node) -> list[int]:
        """A and B of each of a product's weights, -1 where it has no low-rank part; empty where none has one."""
        found = [
            self._numbers.get((operand.kind, operand.key, part), -1)
            for operand in (node.inputs[at] for at in WEIGHTS[node.op])
            for part in ("down", "up")
            if operand is not None
        ]
        return found if max(found, default=-1) >= 0 else []


def _size(value: int | str | None) -> int:
    if value is None:
        return _OPEN
    return _DIMENSIONS[value] if isinstance(value, str) else value


def _sizes(shape: tuple[int | str, ...] | list[int | str]) -> list[int]:
    return [_size(size) for size in shape]


def _attribute(name: str, value: Any) -> Any:
    """An attribute as the native module takes it: dimensions, and a bound that is left open, are numbers."""
    if isinstance(value, (list, tuple)):
        return _sizes(list(value))
    if name in ("start", "end"):
        return _size(value)
    return value
