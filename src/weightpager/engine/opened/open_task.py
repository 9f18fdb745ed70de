"""A task of an open bundle: all that it is built from, and what callers run."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from weightpager.answers.model import TaskModel
from weightpager.bundle.parts.adapter import LowRank
from weightpager.engine.opened.task_tables import TaskTables
from weightpager.runtime.paging.task_gate import TaskGate


@dataclass
class OpenTask:
    """A task of an open bundle.

    Attributes:
        number: the number by which the runtime knows it.
        tables: its block tables, in terms of the page table's pages, expanded while it is held.
        private: its own parameters, as the backend has placed them.
        low_rank: its low-rank parts.
        gate: the gate that its layers ask before they read pages.
        pins: number of times that it is pinned.
        module: what callers run, built when first asked for.
        model: what answers need of that.
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
    building: threading.Lock = field(default_factory=threading.Lock)
