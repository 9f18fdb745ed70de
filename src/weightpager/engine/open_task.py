"""A task of an open bundle: all that it is built from, and what callers run."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.answers.model import TaskModel
from weightpager.bundle import BlockTable, Bundle
from weightpager.bundle.footprint import expanded_bytes
from weightpager.bundle.format.low_rank import LowRank, LowRankLayout, LowRankTables
from weightpager.bundle.format.placement import Placement
from weightpager.kernels.choice import NATIVE
from weightpager.machine.storage import aligned_memory
from weightpager.runtime.paging.residency import TaskGate

if NATIVE:
    from weightpager.kernels import _native


class TableSource:
    """A bundle's placement, and what an engine calls its pages: tables of any task follow from them.

    Args:
        placement: the bundle's placement.
        numbers: int64 [pages], the page table's number of each of the bundle's pages.
        low_rank: by number of the tasks that have low-rank pages, how these lie in which of the bundle's pages.
    """

    def __init__(
        self,
        placement: Placement,
        numbers: npt.NDArray[np.int64],
        low_rank: Mapping[int, tuple[LowRankLayout, npt.NDArray[np.int64]]] = MappingProxyType({}),
    ) -> None:
        self.placement = placement
        self._low_rank = {task: (layout, numbers[pages]) for task, (layout, pages) in low_rank.items()}
        self._numbers = np.ascontiguousarray(numbers[: len(placement.layers)])
        self._native = self._expander() if NATIVE else None

    @classmethod
    def of(cls, bundle: Bundle, numbers: npt.NDArray[np.int64]) -> TableSource:
        """The source of all of a bundle's tables."""
        layouts = {name: layout for name in bundle.tasks if (layout := bundle.low_rank(name)) is not None}
        low_rank = {bundle.task_numbers[name]: (of, bundle.low_rank_pages(name)) for name, of in layouts.items()}
        return cls(bundle.placement, numbers, low_rank)

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

    def layout(self, task: int) -> LowRankLayout | None:
        """How the low-rank parts of task number ``task`` lie in its pages; None if it has none there."""
        return self._low_rank[task][0] if task in self._low_rank else None

    def table_bytes(self, task: int) -> int:
        """Bytes of the tables of task number ``task``."""
        layout = self.layout(task)
        return self.placement.table_bytes(task) + (0 if layout is None else 4 * layout.entries)

    def expand(self, task: int, out: npt.NDArray[np.int32]) -> None:
        """Write the tables of task number ``task``, as `views` and `low_rank_views` find them."""
        if task in self._low_rank:
            layout, pages = self._low_rank[task]
            layout.fill(out[len(out) - layout.entries :], pages)
            out = out[: len(out) - layout.entries]
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
        memory = memory[: self.placement.table_bytes(task) // 4]
        placement, blocks = self.placement, self.placement.numbers
        parts = blocks.split(np.sort(placement.numbers_at(placement.locations_of(task))))
        row_ends = np.cumsum([grid.rows + 1 for grid in blocks.grids])
        ends = np.cumsum([part.stop - part.start for part in parts])[:-1]
        columns, locations = (np.split(half, ends) for half in np.split(memory[row_ends[-1] :], 2))
        rows = np.split(memory[: row_ends[-1]], row_ends[:-1])
        return {name: BlockTable(*arrays) for name, *arrays in zip(blocks.names, rows, columns, locations, strict=True)}

    def low_rank_views(self, task: int, memory: npt.NDArray[np.int32]) -> dict[str, LowRankTables]:
        """The tables of low-rank parts in this memory, by paged weight; they follow all others."""
        layout = self.layout(task)
        return {} if layout is None else layout.tables(memory[len(memory) - layout.entries :])


class TaskTables:
    """Implements `Expandable`. The tables lie at an address that stays, whether they are expanded or not.

    Attributes:
        tables: by paged weight; not to be used while they aren't expanded: all zero then, unless memory is locked.
        low_rank: those of low-rank parts, by paged weight, likewise.
        nbytes: bytes of memory that they take while they are.
    """

    def __init__(self, source: TableSource, task: int) -> None:
        """Reserve address space for tables of the bundle's task of this number. No memory is taken."""
        self.nbytes = expanded_bytes(source.placement, task, source.layout(task))
        self._origin = source, task
        self._memory = aligned_memory(self.nbytes)
        self._entries = np.frombuffer(self._memory, np.int32)[: source.table_bytes(task) // 4]
        self.tables: Mapping[str, BlockTable] = source.views(task, self._entries)
        self.low_rank: Mapping[str, LowRankTables] = source.low_rank_views(task, self._entries)

    def expand(self) -> None:
        source, task = self._origin
        source.expand(task, self._entries)

    def give_back(self) -> None:
        with suppress(OSError):  # memory that is locked stays
            self._memory.madvise(mmap.MADV_DONTNEED)

    def follow(self, source: TableSource, task: int) -> None:
        """Expand the same tables from another state of the bundle from now on, so that the old one needn't be kept.

        Where they wouldn't be the same, as where equal pages have changed places, they are expanded as before.
        """
        size = source.table_bytes(task)
        if size == self._entries.nbytes and np.array_equal(_expanded(*self._origin), _expanded(source, task)):
            self._origin = source, task


def _expanded(source: TableSource, task: int) -> npt.NDArray[np.int32]:
    entries = np.empty(source.table_bytes(task) // 4, np.int32)
    source.expand(task, entries)
    return entries


@dataclass
class OpenTask:
    """A task of an open bundle.

    Attributes:
        number: the number by which the runtime knows it.
        tables: its block tables, in terms of the page table's pages, expanded while it is held.
        private: its own parameters, as the backend has placed them.
        low_rank: its low-rank parts that don't lie in pages, by paged weight.
        gate: the gate that its layers ask before they read pages.
        module: what callers run, built when first asked for.
        model: what answers need of that.
        identity: of this task as it was read now; no other state of it has the same.
        building: the lock that guards both.
    """

    number: int
    tables: TaskTables
    private: Any
    low_rank: dict[str, LowRank]
    gate: TaskGate
    pins: int = 0
    module: Any = None
    model: TaskModel | None = None
    identity: bytes = field(default_factory=lambda: os.urandom(16))
    building: threading.Lock = field(default_factory=threading.Lock)
