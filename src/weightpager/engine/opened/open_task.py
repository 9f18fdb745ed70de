"""A task of an open bundle: all that it is built from, and what callers run."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from weightpager.answers.model import TaskModel
from weightpager.backends.parameters import read_parameters
from weightpager.bundle import Bundle
from weightpager.bundle.format.names import private_file
from weightpager.bundle.parts.adapter import LowRank, read_adapter
from weightpager.engine.backend import Backend
from weightpager.engine.opened.task_tables import TableSource, TaskTables
from weightpager.runtime.memory.page_arena import PageArena
from weightpager.runtime.paging.task_gate import TaskGate


@dataclass
class OpenTask:
    """A task of an open bundle.

    Attributes:
        number: by which the runtime knows it.
        tables: its block tables, in terms of the page table's pages, expanded while it is held.
        private: parameters of its own, as the backend has placed them.
        low_rank: its low-rank parts.
        gate: what its layers ask before they read pages.
        pins: how often it is pinned.
        module: what callers run, built when first asked for.
        model: what answers need of that.
        building: guards both.
    """

    number: int
    tables: TaskTables
    private: Any
    low_rank: dict[str, LowRank]
    gate: TaskGate
    pins: int = 0
    module: Any = None
    model: TaskModel | None = None
    building: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class TaskReader:
    """Reads all that tasks are built from.

    Attributes:
        backend: places their parameters.
        arena: whose pages they read.
        dtype: as an `EngineConfig` states it.
    """

    backend: Backend
    arena: PageArena
    dtype: str

    def read(self, bundle: Bundle, name: str, number: int, source: TableSource) -> OpenTask:
        """One of a bundle's tasks, with block tables from this source.

        Raises:
            BundleError: a file of it is damaged.
        """
        private = self.backend.place(read_parameters(bundle, private_file(name), self.dtype))
        gate = TaskGate(name, self.arena.note_read)
        return OpenTask(
            number, TaskTables(source, bundle.task_numbers[name]), private, read_adapter(bundle, name), gate
        )
