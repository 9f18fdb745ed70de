"""A task of an open bundle: all that its module is built from, and the module."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from torch import Tensor, nn

from weightpager.bundle import Bundle
from weightpager.bundle.format.names import private_file
from weightpager.bundle.parts.adapter import LowRank, read_adapter
from weightpager.engine.parameters import read_parameters, tied_weights
from weightpager.engine.tasks.task_tables import TableSource, TaskTables
from weightpager.kernels import PagedWeight
from weightpager.runtime.memory.page_arena import PageArena
from weightpager.runtime.paging.task_gate import TaskGate


@dataclass
class OpenTask:
    """A task of an open bundle.

    Attributes:
        number: by which the runtime knows it.
        tables: its block tables, in terms of the page table's pages, expanded while it is held.
        private: parameters of its own.
        tied: tables among these that a head is tied to, in blocks.
        low_rank: its low-rank parts.
        gate: what its layers ask before they read pages.
        pins: how often it is pinned.
        module: built when first asked for.
        building: guards that.
    """

    number: int
    tables: TaskTables
    private: dict[str, Tensor]
    tied: dict[str, PagedWeight]
    low_rank: dict[str, LowRank]
    gate: TaskGate
    pins: int = 0
    module: nn.Module | None = None
    building: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def read(
        cls, bundle: Bundle, name: str, number: int, source: TableSource, arena: PageArena, dtype: str
    ) -> OpenTask:
        """Read all that its module is built from, with block tables from this source."""
        private = read_parameters(bundle, private_file(name), arena.pages.device, dtype)
        gate = TaskGate(name, arena.note_read)
        tables = TaskTables(source, bundle.task_numbers[name])
        return cls(number, tables, private, tied_weights(bundle, private), read_adapter(bundle, name), gate)
