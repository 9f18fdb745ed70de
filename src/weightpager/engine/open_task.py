"""A task of an open bundle: all that it is built from, and what callers run."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.model import TaskModel
from weightpager.bundle import BlockTable, Bundle
from weightpager.bundle.footprint import whole_pages
from weightpager.bundle.format.low_rank import LowRankLayout
from weightpager.bundle.format.placement import Placement
from weightpager.kernels.choice import NATIVE
from weightpager.machine.storage import aligned_memory
from weightpager.runtime.memory.memory_budget import Expandable
from weightpager.runtime.paging.residency import TaskGate

if NATIVE:
    from weightpager.kernels import _native


class TableSource:
    """A bundle's placement, and what an engine calls its pages: tables of any task follow from them.

    Args:
        placement: the bundle's placement.
        numbers: int64 [pages], the page table's number of each of the bundle's pages.
    """

    def __init__(self, placement: Placement, numbers: npt.NDArray[np.int64]) -> None:
        self.placement = placement
        self._numbers = np.ascontiguousarray(numbers[: len(placement.layers)])
        self._native = self._expander() if NATIVE else None

    def _expander(self) -> _native.TableExpander:
        """Native code that knows which block lies in each place. `Placement.tables` says what is right."""
        placement, blocks = self.placement, self.placement.numbers
        arrays = tuple(map(np.ascontiguousarray, (placement.blocks, placement.layers, self._numbers, blocks.starts)))
        self._kept = arrays  # what it points to
        grids = [(first, grid.rows, grid.cols) for first, grid in zip(blocks.first.tolist(), blocks.grids, strict=True)]
        self._rows = sum(rows + 1 for _, rows, _ in grids)
        pages, places = placement.blocks.shape
        at, layers, numbers, starts = (array.ctypes.data for array in arrays)
        wide, total = placement.blocks.itemsize == 4, int(blocks.starts[-1])
        return _native.TableExpander(at, layers, numbers, starts, pages, places, wide, total, grids)

    def expand(self, task: int, out: npt.NDArray[np.int32]) -> None:
        """Write the tables of task number ``task``, as `views` finds them."""
        if self._native is not None:
            columns = out.ctypes.data + self._rows * 4
            locations = columns + (len(out) - self._rows) // 2 * 4
            self._native.expand(self.placement.used[task].ctypes.data, out.ctypes.data, columns, locations)
            return
        views = self.views(task, out)
        for name, table in self.placement.tables(task, self._numbers).items():
            views[name].crow_indices[:] = table.crow_indices
            views[name].col_indices[:] = table.col_indices
            views[name].locations[:] = table.locations

    def views(self, task: int, memory: npt.NDArray[np.int32]) -> dict[str, BlockTable]:
        """The tables in this memory, by paged weight: all weights' rows, then their columns, then their locations."""
        placement, blocks = self.placement, self.placement.numbers
        parts = blocks.split(np.sort(placement.numbers_at(placement.locations_of(task))))
        row_ends = np.cumsum([grid.rows + 1 for grid in blocks.grids])
        ends = np.cumsum([part.stop - part.start for part in parts])[:-1]
        columns, locations = (np.split(half, ends) for half in np.split(memory[row_ends[-1] :], 2))
        rows = np.split(memory[: row_ends[-1]], row_ends[:-1])
        return {name: BlockTable(*arrays) for name, *arrays in zip(blocks.names, rows, columns, locations, strict=True)}


class TableMemory:
    """Memory of some tables, at an address that stays, whether they are expanded or not.

    While they aren't, nobody may read them: they are all zero then, unless memory is locked.

    Attributes:
        entries: int32 [numbers in the tables].
        nbytes: bytes of memory that they take while they are expanded.
    """

    def __init__(self, entries: int) -> None:
        """Reserve address space. No memory is taken."""
        self.nbytes = whole_pages(4 * entries)
        self._memory = aligned_memory(self.nbytes)
        self.entries: npt.NDArray[np.int32] = np.frombuffer(self._memory, np.int32)[:entries]

    def give_back(self) -> None:
        with suppress(OSError):  # memory that is locked stays
            self._memory.madvise(mmap.MADV_DONTNEED)


class BlockTables(TableMemory):
    """Implements `Expandable`: the tables of all paged weights, which tasks with the same blocks have in common.

    Attributes:
        tables: by paged weight.
        weights: what a backend has made of these, by paged weight.
    """

    def __init__(self, source: TableSource, task: int) -> None:
        """Reserve address space for tables of the bundle's task of this number."""
        super().__init__(source.placement.table_bytes(task) // 4)
        self.weights: dict[str, Any] = {}
        self._origin = source, task

    @cached_property
    def tables(self) -> Mapping[str, BlockTable]:
        source, task = self._origin
        return source.views(task, self.entries)

    def expand(self) -> None:
        source, task = self._origin
        source.expand(task, self.entries)

    def follow(self, source: TableSource, task: int) -> bool:
        """Expand the same tables from another state of the bundle from now on, so that the old one needn't be kept.

        Where they wouldn't be the same, as where equal pages have changed places, they are expanded as before, and this
        returns False.
        """
        size = source.placement.table_bytes(task)
        same = size == self.entries.nbytes and np.array_equal(_expanded(*self._origin), _expanded(source, task))
        if same:
            self._origin = source, task
        return same


class LowRankTableMemory(TableMemory):
    """Implements `Expandable`: the tables of a task's low-rank parts.

    Attributes:
        tables: by paged weight.
    """

    def __init__(self, layout: LowRankLayout, pages: npt.NDArray[np.int64]) -> None:
        """Reserve address space; ``pages`` are what the page table calls the task's low-rank pages."""
        super().__init__(layout.entries)
        self._layout, self._pages = layout, pages
        self.tables = layout.tables(self.entries)

    def expand(self) -> None:
        self._layout.fill(self.entries, self._pages)


@dataclass(frozen=True, eq=False)
class TaskTables:
    """Implements `Tables`: those of a task's paged weights, and of its low-rank parts if it has low-rank pages."""

    blocks: BlockTables
    low_rank: LowRankTableMemory | None = None

    @property
    def parts(self) -> tuple[Expandable, ...]:
        return (self.blocks,) if self.low_rank is None else (self.blocks, self.low_rank)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


class SharedTables:
    """Makes the tables of a bundle's tasks, one of a kind for all tasks with the same blocks.

    Args:
        bundle: whose tasks they are.
        numbers: int64 [pages], the page table's number of each of the bundle's pages.
    """

    def __init__(self, bundle: Bundle, numbers: npt.NDArray[np.int64]) -> None:
        self._bundle, self._numbers = bundle, numbers
        self._source = TableSource(bundle.placement, numbers)
        self._made: dict[bytes, BlockTables] = {}

    def of(self, name: str) -> TaskTables:
        """A task's tables."""
        bundle, layout = self._bundle, self._bundle.low_rank(name)
        number = bundle.task_numbers[name]
        key = bundle.placement.used[number].tobytes()
        if key not in self._made:
            self._made[key] = BlockTables(self._source, number)
        low_rank = None if layout is None else LowRankTableMemory(layout, self._numbers[bundle.low_rank_pages(name)])
        return TaskTables(self._made[key], low_rank)

    def take_over(self, name: str, tables: TaskTables) -> None:
        """Have tables of an earlier state of the bundle follow this one: the task stays."""
        number = self._bundle.task_numbers[name]
        if tables.blocks.follow(self._source, number):
            self._made.setdefault(self._bundle.placement.used[number].tobytes(), tables.blocks)


def _expanded(source: TableSource, task: int) -> npt.NDArray[np.int32]:
    entries = np.empty(source.placement.table_bytes(task) // 4, np.int32)
    source.expand(task, entries)
    return entries


@dataclass
class OpenTask:
    """A task of an open bundle.

    Attributes:
        number: the number by which the runtime knows it.
        tables: its block tables, in terms of the page table's pages, expanded while it is held.
        private: its own parameters, as the backend has placed them.
        gate: the gate that its layers ask before they read pages.
        module: what callers run, built when first asked for.
        model: what answers need of that.
        identity: of this task as it was read now; no other state of it has the same.
        building: the lock that guards both.
    """

    number: int
    tables: TaskTables
    private: Any
    gate: TaskGate
    pins: int = 0
    module: Any = None
    model: TaskModel | None = None
    identity: bytes = field(default_factory=lambda: os.urandom(16))
    building: threading.Lock = field(default_factory=threading.Lock)
