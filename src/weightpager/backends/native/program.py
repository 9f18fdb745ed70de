"""`GraphProgram`: a graph with its parameters, run by native code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from threading import Lock

import numpy as np

import weightpager.kernels._native as _native
from weightpager.backends.native.lowering import Array, Blocks, Lowering, ProgramParameter
from weightpager.bundle.format.manifest import FORMS
from weightpager.errors import ConfigError
from weightpager.graph import Graph, Node, Operand
from weightpager.graph.file import FEATURES
from weightpager.graph.graph import split
from weightpager.kernels import PageNotResidentError
from weightpager.kernels.paged_weight import PageGate
from weightpager.kernels.rows import RowSource
from weightpager.machine.processor import usable_cores

_MOST = 256


def thread_count() -> int:
    """``WEIGHTPAGER_THREADS``; else torch's where it is loaded; else ``OMP_NUM_THREADS``; else the usable cores.

    Raises:
        ConfigError: ``WEIGHTPAGER_THREADS`` is no number from 1 to 256.
    """
    asked = os.environ.get("WEIGHTPAGER_THREADS", "")
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= _MOST:
            raise ConfigError(f"WEIGHTPAGER_THREADS: expected 1 to {_MOST}, got {asked!r}")
        return int(asked)
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):  # it may be half imported
        return int(torch.get_num_threads())
    theirs = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]  # of nested levels the first
    if theirs.isdecimal() and int(theirs) >= 1:
        return min(int(theirs), _MOST)
    return min(usable_cores(), _MOST)


MOST_ACTIVATION_BYTES = 2**32
"""Activations of one call take no more, unless the caller states another number."""

_NUMPY = {"float32": np.float32, "int64": np.int64, "bool": np.bool_}

KVCache = _native.KVCache
"""The keys and values of earlier tokens: ``KVCache(most_bytes, float16=False)``. Of one program, one thread at a
time. In float16 they are rounded as they are kept, and take half of the bytes.

It grows by ``KVCache.block`` tokens at a time, which take as much as `GraphProgram.cache_block_bytes` says for each
text. A call that would need more than ``most_bytes`` raises `MemoryError`. ``tokens``, ``batch`` and ``bytes`` say what
the cache holds. ``shorten(tokens)`` keeps that many of the first tokens. ``select(rows)`` makes row i of the batch what
row ``rows[i]`` was. ``piece(start)`` copies what a single text has from a token on, in whole blocks, and
``append(piece)`` puts a copy of that behind what is there."""

KVPiece = _native.KVPiece
"""Keys and values of some tokens, whose ``tokens`` and ``bytes`` it tells."""

_FEATURES = 5
"""Of a call that is planned, as many as no other size."""

Workspaces = _native.Workspaces
"""Memory for activations that programs have in common: as many workspaces as there have been calls at once."""


class GraphProgram:
    """A graph with its parameters. Safe to use from several threads, which take turns.

    Results don't depend on the number of threads. Memory for activations is taken at the first call of some shape, and
    kept; calls of shapes that were among the last sixteen take none.

    Args:
        graph: a validated graph.
        parameters: all that the graph uses, by canonical name; referred to, not copied, but for arrays of bfloat16 that
            aren't weights. A weight of bfloat16 is an array of uint16.
        isa: the kernels' instruction set, as an index into ``weightpager.kernels._native.isas()``.
        most_activation_bytes: bytes that activations of one call may take.
        workspaces: the memory that calls take for activations; None for memory of its own.

    Raises:
        ValueError: a parameter is missing, or of a dtype that the native code doesn't take.
    """

    def __init__(
        self,
        graph: Graph,
        parameters: Mapping[str, ProgramParameter],
        isa: int = 0,
        most_activation_bytes: int = MOST_ACTIVATION_BYTES,
        workspaces: Workspaces | None = None,
    ) -> None:
        self._graph, self._lock = graph, Lock()
        self._native = _native.Program(isa, most_activation_bytes, Workspaces() if workspaces is None else workspaces)
        lowering = Lowering(self._native, graph, parameters)
        lowering.run()
        self._values, self._kept = lowering.values, (lowering.arrays, dict(parameters))
        self._stretches = list(_stretches(graph, parameters, lowering.ends))

    @property
    def activation_bytes(self) -> int:
        """Memory that activations have now, those of other programs of the same workspaces included."""
        return self._native.activation_bytes

    def shapes(self, batch: int, length: int) -> dict[str, tuple[str, list[int]]]:
        """The outputs' dtypes and shapes by name, of a call with so many texts of so many tokens. No value is read.

        Raises:
            ValueError: the shapes of parameters and values don't fit each other.
        """
        stated = {"batch": batch, "length": length, "features": _FEATURES}
        inputs = [each.shape for each in self._graph.inputs]
        found = self._native.outputs([[stated[x] if isinstance(x, str) else x for x in shape] for shape in inputs])
        return {output.name: shape for output, shape in zip(self._graph.outputs, found, strict=True)}

    def cache_block_bytes(self, float16: bool = False) -> int:
        """Bytes by which the `KVCache` of one text grows at a time, with ``KVCache.block`` tokens of each layer.

        Raises:
            ValueError: the graph takes no text of one token.
        """
        sizes = [[1 if isinstance(size, str) else size for size in each.shape] for each in self._graph.inputs]
        return self._native.cache_block_bytes(sizes, float16)

    def run(
        self,
        inputs: Mapping[str, Array],
        cache: KVCache | None = None,
        gate: PageGate | None = None,
        threads: int | None = None,
    ) -> dict[str, Array]:
        """The graph's outputs, by name.

        Args:
            inputs: the graph's inputs by name, of its dtypes. Beside a cache, a mask covers earlier tokens, too.
            cache: keys and values of earlier tokens, which those of this call are appended to if it succeeds.
            gate: the gate that is asked before pages are read; None where all pages are there.
            threads: the most threads that may compute; None for `thread_count`.

        Raises:
            ValueError: an input is missing, or its dtype or shape isn't what the graph takes.
            IndexError: an id isn't in its table.
            MemoryError: activations, or keys and values, would take more than they may.
            PageNotResidentError: a block's page is not in the arena.
        """
        arrays = [self._input(each.name, each.dtype, inputs) for each in self._graph.inputs]
        threads = thread_count() if threads is None else threads
        with self._lock:
            try:
                self._native.begin([each.ctypes.data for each in arrays], [list(each.shape) for each in arrays], cache)
                done = 0
                for stretch in self._stretches:
                    self._run(stretch, done, gate, threads)
                    done = stretch.end
                outputs = {each.name: self._read(self._values[each.value]) for each in self._graph.outputs}
                self._native.finish()
            except _native.TooLargeError as error:
                raise MemoryError(str(error)) from None
            finally:
                self._native.end()
        return outputs

    def _run(self, stretch: _Stretch, first: int, gate: PageGate | None, threads: int) -> None:
        if stretch.rows is not None:
            self._look_up(stretch.rows, stretch.node)
        if gate is None or stretch.layer is None:
            missing = self._native.run(first, stretch.end, threads)
        else:
            reader = object()
            try:
                gate.enter(reader, stretch.layer)
                missing = self._native.run(first, stretch.end, threads)
            finally:
                gate.leave(reader)
        if missing >= 0:
            raise PageNotResidentError(missing)

    def _look_up(self, rows: RowSource, node: Node) -> None:
        """Fill a node's value with the rows that it looks up in a table on demand."""
        operand = node.inputs[1]
        assert operand is not None
        ids = self._read(self._number(operand.kind, operand.key)).reshape(-1)
        if ids.size and not 0 <= ids.min() <= ids.max() < rows.rows:
            raise IndexError(f"expected ids from 0 to {rows.rows - 1}, found {ids.min()} to {ids.max()}")
        out = np.empty((len(ids), rows.columns), np.float32)
        rows.look_up(ids, out)
        self._native.write(self._values[node.output], out.ctypes.data, out.nbytes)

    def _number(self, kind: str, key: str | int) -> int:
        if kind == "input":
            return next(at for at, each in enumerate(self._graph.inputs) if each.name == key)
        if kind == "value":
            return self._values[str(key)]
        raise ValueError(f"expected ids that are an input or a value, found {kind} {key}")

    def _read(self, number: int) -> Array:
        out: Array = np.empty(self._native.sizes(number), _NUMPY[self._native.dtype(number)])
        self._native.read(number, out.ctypes.data)
        return out

    def _input(self, name: str, dtype: str, inputs: Mapping[str, Array]) -> Array:
        if name not in inputs:
            raise ValueError(f"input {name}: expected it, found {', '.join(inputs) or 'none'}")
        array = np.asarray(inputs[name])
        if array.dtype != _NUMPY[dtype]:
            raise ValueError(f"input {name}: expected {dtype}, found {array.dtype}")
        return np.ascontiguousarray(array).reshape(array.shape)


def writes(graph: Graph) -> bool:
    """Whether a graph is of tasks that write; `FEATURES` are no tasks."""
    return graph.kind != FEATURES and FORMS[graph.kind].writes  # type: ignore[index]


def stages(graph: Graph, parameters: Mapping[str, ProgramParameter]) -> tuple[Graph, ...]:
    """The graphs that run a task one after the other: few tokens of a prompt need logits.

    Of a language model, the graph below its head, and the head.

    Raises:
        ValueError: a language model's graph has no linear head that can be told apart.
    """
    if not writes(graph):
        return (graph,)
    hidden = next((each.value for each in graph.outputs if each.name == "hidden"), "")
    heads = (node for node in graph.nodes if node.op == "linear" and node.inputs[0] == Operand.value(hidden))
    width = _width(next(heads, None), parameters)
    if width is None:
        raise ValueError("expected a linear head of the value 'hidden', with a matrix as its weight, found none")
    return split(graph, "hidden", width)


def _width(head: Node | None, parameters: Mapping[str, ProgramParameter]) -> int | None:
    """How many numbers a linear head takes of each token; None where its weight is no matrix."""
    operand = None if head is None else head.inputs[1]
    weight = None if operand is None else parameters.get(str(operand.key))
    if isinstance(weight, Blocks):
        return weight.weight.in_features
    return weight.shape[1] if isinstance(weight, np.ndarray) and weight.ndim == 2 else None


class _Stretch:
    """Nodes up to ``end`` (of the native program) that need the pages of one model layer at most.

    ``rows`` are what the first of them, ``node``, looks up.
    """

    def __init__(self, end: int, layer: int | None, rows: RowSource | None, node: Node) -> None:
        self.end, self.layer, self.rows, self.node = end, layer, rows, node


def _stretches(graph: Graph, parameters: Mapping[str, ProgramParameter], ends: list[int]) -> Iterator[_Stretch]:
    now: _Stretch | None = None
    for node, end in zip(graph.nodes, ends, strict=True):
        used = [
            parameters[str(operand.key)]
            for operand in node.inputs
            if operand is not None and operand.kind == "parameter"
        ]
        layers = {each.layer for each in used if isinstance(each, Blocks) and each.layer is not None}
        rows = next((each for each in used if not isinstance(each, (Blocks, np.ndarray))), None)
        if len(layers) > 1:
            raise ValueError(f"operator {node.op}: expected weights of one model layer, found {sorted(layers)}")
        layer = next(iter(layers), None)
        if now is not None and rows is None and (layer is None or now.layer is None or layer == now.layer):
            now.end, now.layer = end, now.layer if layer is None else layer
            continue
        if now is not None:
            yield now
        now = _Stretch(end, layer, rows, node)
    if now is not None:
        yield now
