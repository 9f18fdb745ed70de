"""What one bundle takes of a budget that several share, what it has to give, and what it wants. Arithmetic alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle import Bundle
from weightpager.runtime.budget import MemoryNeeds
from weightpager.runtime.planning.block_manager import BlockManager
from weightpager.runtime.planning.pages import Uses
from weightpager.runtime.planning.shares import Holding, Wish


@dataclass(frozen=True)
class Bounds:
    """Bytes that a bundle takes while it is awake. Asleep it takes none.

    Attributes:
        alone: for each task, what holds it beside nothing but those that stay.
        staying: tasks that are always in memory.
        most: all that it can use.
    """

    alone: Mapping[str, int]
    staying: frozenset[str]
    most: int

    @classmethod
    def of(cls, bundle: Bundle, needs: MemoryNeeds, staying: Collection[str] = ()) -> Bounds:
        """The bounds of a bundle that asks for ``needs``."""
        alone = {}
        for task in bundle.tasks:
            needed = [bundle.pages_of(name) for name in {task, *staying}]
            tables = needs.footprint.all_tables if len(needed) > 1 else 0
            alone[task] = needs.holding(len(np.unique(np.concatenate(needed))), tables=tables).total
        return cls(alone, frozenset(staying), needs.holding_all().total)

    @property
    def smallest(self) -> str:
        """The task that takes least."""
        return min(self.alone, key=self.alone.__getitem__)

    @property
    def largest(self) -> str:
        """The task that takes most."""
        return max(self.alone, key=self.alone.__getitem__)

    @property
    def kept(self) -> int:
        """What it can't do without: its smallest task's, or those of tasks that stay."""
        return min(self.alone[task] for task in self.staying or self.alone)

    @property
    def least(self) -> int:
        """What holds its largest task alone."""
        return self.alone[self.largest]

    def wish(self, task: str) -> Wish:
        """What it wants for a task while it sleeps."""
        return Wish(self.alone[task], self.alone[task])


@dataclass(frozen=True)
class SharedBounds:
    """Budgets of several bundles that may all sleep, by the bounds of each."""

    bundles: Mapping[str, Bounds]

    @property
    def smallest(self) -> int:
        """The largest task of each runs, alone where it must."""
        return max(bounds.least for bounds in self.bundles.values())

    @property
    def all_awake(self) -> int:
        """All bundles are awake, each with its smallest task."""
        return sum(bounds.kept for bounds in self.bundles.values())

    @property
    def without_sleep(self) -> int:
        """The largest task of each runs, and no other bundle must sleep for it."""
        return self.all_awake + max(bounds.least - bounds.kept for bounds in self.bundles.values())

    @property
    def everything(self) -> int:
        """Nothing ever goes."""
        return sum(bounds.most for bounds in self.bundles.values())


def holding(needs: MemoryNeeds, blocks: BlockManager, share: int, uses: Uses, *, tables: int = 0) -> Holding:
    """What a bundle that is awake has of its share, as one that must stay awake.

    Args:
        needs: of the bundle.
        blocks: what is in its arena.
        share: bytes.
        uses: expected of each task, by number.
        tables: bytes of expanded block tables that tasks in use take together.
    """
    may_go = blocks.slots - needs.least_pages  # no budget is without the smallest task's slots
    free = min(blocks.free, may_go)
    worths = np.sort(blocks.worth(uses)[blocks.evictable()])
    spare = share - needs.holding(blocks.slots, tables=tables).total
    return Holding(share, max(0, spare), needs.page_bytes, free, worths[: may_go - free])


def wish(needs: MemoryNeeds, blocks: BlockManager, task: int, *, tables: int = 0) -> Wish:
    """What a bundle that is awake wants for a task, by its number.

    ``tables`` are bytes of expanded block tables that it takes with those in use.
    """
    there = blocks.slots - blocks.free
    least = max(blocks.pages_in_use(task), needs.least_pages)
    most = max(least, min(there + blocks.missing_count(task), needs.pages))
    return Wish(*(needs.holding(pages, tables=tables).total for pages in (least, most)))


def wanted(blocks: BlockManager, uses: Uses) -> npt.NDArray[np.float64]:
    """Expected uses of the pages that aren't in a bundle's arena, descending; those that have none are left out."""
    occupancy, worth = blocks.occupancy(), blocks.worth(uses)
    absent = worth[~occupancy.resident & ~occupancy.loading]
    return np.sort(absent[absent > 0])[::-1]
