"""What an engine gives a backend to build tasks from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from weightpager.blocks import BlockGrid
from weightpager.bundle import BlockTable, Bundle, WeightEntry
from weightpager.bundle.files.tensor_file import TensorInfo
from weightpager.bundle.format.low_rank import LowRankTables
from weightpager.bundle.format.manifest import LOW_RANK_DTYPE
from weightpager.bundle.format.whole_weight import STORED, WholeWeightEntry
from weightpager.bundle.parameter_files import stored_parameters
from weightpager.errors import shown
from weightpager.kernels import PagedWeight
from weightpager.kernels.paged_weight import PageGate, whole_weight
from weightpager.page_dtype import ENCODINGS, PageDtype
from weightpager.runtime.rows import RowCache


@dataclass(frozen=True)
class StoredMatrix:
    """A matrix in blocks, as a task's pages hold it.

    Attributes:
        grid: how it is cut.
        dtype: of its blocks.
        table: where they lie, in terms of the page table's pages; referred to, not copied.
    """

    grid: BlockGrid
    dtype: PageDtype
    table: BlockTable

    @classmethod
    def of_entry(cls, bundle: Bundle, entry: WeightEntry, table: BlockTable) -> StoredMatrix:
        """A bundle's paged weight, as a task has it."""
        return cls(bundle.manifest.grid(entry), bundle.manifest.dtype, table)

    def on_host(self, arena: npt.NDArray[np.uint8], page_table: npt.NDArray[np.int32]) -> PagedWeight:
        """What kernels multiply by where the arena uint8 [slots, page_bytes] and int32 [pages] are the host's."""
        return PagedWeight(
            arena=arena,
            page_table=page_table,
            crow_indices=self.table.crow_indices,
            col_indices=self.table.col_indices,
            locations=self.table.locations,
            out_features=self.grid.out_features,
            in_features=self.grid.in_features,
            block_rows=self.grid.block.rows,
            block_cols=self.grid.block.cols,
            dtype=self.dtype,
        )


_ALIGNMENT = 64
"""Bytes between parameters' addresses: a cache line, so that results don't depend on where memory happens to lie."""

_AT_ONCE = 1 << 18
"""Values that are rounded at once."""

_FLOATS = ("float32", "bfloat16")

V = TypeVar("V")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class StoredParameter:
    """One parameter or buffer of a bundle.

    Attributes:
        values: its values in memory, bfloat16 as uint16.
        dtype: its name, as numpy's would be.
    """

    values: npt.NDArray[Any]
    dtype: str


@dataclass(frozen=True)
class Placed(Generic[V, W]):
    """Parameters by canonical name, where a backend reads them.

    Attributes:
        values: the values of each; what lies in blocks is as it is stored.
        whole: those that lie in blocks, as kernels multiply by them.
    """

    values: Mapping[str, V]
    whole: Mapping[str, W]

    def __or__(self, other: Placed[V, W]) -> Placed[V, W]:
        """These and others, which take the place of those of the same name."""
        whole = {name: weight for name, weight in self.whole.items() if name not in other.values}
        return Placed({**self.values, **other.values}, {**whole, **other.whole})


Parameters = Placed[StoredParameter, PagedWeight]


def read_parameters(bundle: Bundle, file: str, dtype: str = "auto") -> Parameters:
    """All tensors of a parameter file, in memory of their own: one allocation, which each is read into.

    Args:
        bundle: whose file it is.
        file: its name.
        dtype: of an `EngineConfig`.

    Raises:
        BundleFormatError: the file isn't what its manifest entry says.
    """
    # No mapping, whose pages would come and go with the page cache, and be missing from the budget.
    with stored_parameters(bundle.path, bundle.manifest, file) as stored:
        narrow = dtype == "bfloat16"
        dtypes = {name: _dtype(stated, narrow) for name, stated in stored.header.items()}
        values = _room({name: (dtypes[name], stated.shape) for name, stated in stored.header.items()})
        for name, stated in stored.header.items():
            into = values[name]
            if dtypes[name] == stated.dtype:
                stored.read(name, _bytes(into))
                continue
            wide = np.empty(stated.shape, np.float32)
            stored.read(name, _bytes(wide))
            _round(wide.reshape(-1), into.reshape(-1))
    parameters = {name: StoredParameter(array, dtypes[name]) for name, array in values.items()}
    return Placed(parameters, _whole_weights(bundle, parameters))


def activation_dtype(dtypes: Iterable[str]) -> str:
    """What a module of such parameters computes in: bfloat16 if that is what all of them are in, else float32."""
    floating = {dtype for dtype in dtypes if dtype in _FLOATS}
    return "bfloat16" if floating == {"bfloat16"} else "float32"


def whole_in(bundle: Bundle, dtypes: Mapping[str, str]) -> list[WholeWeightEntry]:
    """The weights that parameters of these dtypes have as blocks."""
    return [each for each in bundle.manifest.whole_weights if dtypes.get(each.name) == STORED]


def _whole_weights(bundle: Bundle, values: Mapping[str, StoredParameter]) -> dict[str, PagedWeight]:
    block = bundle.manifest.block_shape.rows, bundle.manifest.block_shape.cols
    return {
        entry.name: whole_weight(values[entry.name].values, entry.rows, entry.columns, block, entry.dtype)
        for entry in whole_in(bundle, {name: value.dtype for name, value in values.items()})
    }


def _dtype(stated: TensorInfo, narrow: bool) -> str:
    return "bfloat16" if narrow and stated.dtype == "float32" else stated.dtype


def _room(wanted: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, npt.NDArray[Any]]:
    """Arrays of these dtypes and shapes, in one allocation."""
    dtypes = {name: np.dtype("uint16" if dtype == "bfloat16" else dtype) for name, (dtype, _) in wanted.items()}
    sizes = {name: dtypes[name].itemsize * int(np.prod(shape, dtype=np.int64)) for name, (_, shape) in wanted.items()}
    memory = np.empty(sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes.values()) + _ALIGNMENT, np.uint8)
    at, made = -memory.ctypes.data % _ALIGNMENT, {}
    for name, (_, shape) in wanted.items():
        made[name] = memory[at : at + sizes[name]].view(dtypes[name]).reshape(shape)
        at += -(-sizes[name] // _ALIGNMENT) * _ALIGNMENT
    return made


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _round(wide: npt.NDArray[np.float32], into: npt.NDArray[np.uint16]) -> None:
    """To bfloat16, to nearest and ties to even, as torch rounds."""
    for start in range(0, len(wide), _AT_ONCE):
        part = wide[start : start + _AT_ONCE]
        into[start : start + _AT_ONCE] = np.where(np.isnan(part), 0x7FC0, ENCODINGS["bfloat16"].narrow(part))


P = TypeVar("P", bound="Placed[Any, Any]")


def no_arrays(task: str, found: object) -> TypeError:
    """The error of a task that is called with something else than arrays, such as a text."""
    takes = "takes arrays by name, such as input_ids=..."
    return TypeError(f"task {task!r} {takes}, found {shown(found)}; engine.predict({task!r}, [...]) answers texts")


@dataclass(frozen=True)
class TaskParts(Generic[P]):
    """One task of an open bundle.

    Attributes:
        bundle: the bundle that the task is in.
        name: the task's name.
        tables: its block tables by paged weight, in terms of the page table's pages; expanded while it is built and
            while it is held.
        weights: what the backend has made of these, by paged weight: tasks with the same blocks have it in common.
        parameters: the resident parameters and the task's own, as the backend has placed them.
        low_rank: the tables of its low-rank parts by paged weight, as ``tables`` are.
        gate: the task's gate.
        arena: uint8 [slots, page_bytes], where pages are: an array on the host, else a tensor.
        page_table: int32 [pages], page number → slot; follows the arena.
        rows: tables whose rows come on demand, by canonical name.
    """

    bundle: Bundle
    name: str
    tables: Mapping[str, BlockTable]
    weights: dict[str, Any]
    parameters: P
    low_rank: Mapping[str, LowRankTables]
    gate: PageGate
    arena: Any
    page_table: Any
    rows: Mapping[str, RowCache]

    def low_rank_matrices(self) -> dict[str, tuple[StoredMatrix, StoredMatrix]]:
        """A and B of each low-rank part, by paged weight."""
        layout = self.bundle.low_rank(self.name)
        if layout is None or not self.low_rank:
            return {}
        found = {}
        for name, down, up in zip(layout.names, layout.down.grids, layout.up.grids, strict=True):
            tables = self.low_rank[name]
            pair = StoredMatrix(down, LOW_RANK_DTYPE, tables.down), StoredMatrix(up, LOW_RANK_DTYPE, tables.up)
            found[name] = pair
        return found
