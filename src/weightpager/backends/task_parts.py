"""What an engine gives a backend to build tasks from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from weightpager.backends.parameters import Placed
from weightpager.bundle import BlockTable, Bundle
from weightpager.bundle.parts.adapter import LowRank
from weightpager.errors import shown
from weightpager.runtime.rows.row_cache import RowCache

P = TypeVar("P", bound="Placed[Any, Any]")


def no_arrays(task: str, found: object) -> TypeError:
    """The error of a task that is called with something else than arrays, such as a text."""
    takes = "takes arrays by name, such as input_ids=..."
    return TypeError(f"task {task!r} {takes}, found {shown(found)}; engine.predict({task!r}, [...]) answers texts")


class Gate(Protocol):
    """What a task asks before it reads pages of the arena, and tells when it has read them."""

    def enter(self, reader: object, layer: int) -> None:
        """Wait until the pages of model layer ``layer`` may be read; they stay until ``reader`` leaves.

        Raises:
            TaskNotActiveError: the task isn't active, so its pages may be absent.
            SwitchFailedError: one of the pages couldn't be loaded.
        """

    def note_read(self) -> None:
        """What reads the pages has been launched."""

    def leave(self, reader: object, /) -> None:
        """The reader isn't inside any more, if it was: called in the ``finally`` of the ``try`` that it enters in."""


@dataclass(frozen=True)
class TaskParts(Generic[P]):
    """One task of an open bundle.

    Attributes:
        bundle: the bundle that the task is in.
        name: the task's name.
        tables: its block tables by paged weight, in terms of the page table's pages; expanded while it is built and
            while it is held.
        parameters: the resident parameters and the task's own, as the backend has placed them.
        low_rank: its low-rank parts by paged weight.
        gate: the task's gate.
        arena: uint8 [slots, page_bytes], where pages are: an array on the host, else a tensor.
        page_table: int32 [pages], page number → slot; follows the arena.
        rows: tables whose rows come on demand, by canonical name.
    """

    bundle: Bundle
    name: str
    tables: Mapping[str, BlockTable]
    parameters: P
    low_rank: Mapping[str, LowRank]
    gate: Gate
    arena: Any
    page_table: Any
    rows: Mapping[str, RowCache]
