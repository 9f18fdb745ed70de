"""Where a bundle's pages are, for people to look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.runtime.planning.page_table import ABSENT
from weightpager.runtime.planning.plans import Pages


@dataclass(frozen=True, eq=False)
class ResidencyMap:
    """What is in the arena, by layer and task. A picture of one moment: loads go on meanwhile.

    Attributes:
        layers: int32 [pages], the layer that each page belongs to.
        resident: bool [pages].
        needs: task → its pages, ascending.
    """

    layers: npt.NDArray[np.int32]
    resident: npt.NDArray[np.bool_]
    needs: Mapping[str, Pages]

    @classmethod
    def of(
        cls, layers: npt.NDArray[np.int32], page_table: npt.NDArray[np.int32], needs: Mapping[str, Pages]
    ) -> ResidencyMap:
        """By a page table, which may have room for more pages than there are."""
        return cls(layers, page_table[: len(layers)] != ABSENT, needs)

    def by_layer(self, task: str) -> npt.NDArray[np.int64]:
        """[layers, 2]: of each layer the task's resident pages, and all that it needs."""
        count = int(self.layers.max(initial=-1)) + 1
        need = self.needs[task]
        here = need[self.resident[need]]
        counts = [np.bincount(self.layers[pages], minlength=count) for pages in (here, need)]
        return np.stack(counts, axis=1).astype(np.int64)

    def share(self, task: str) -> float:
        """Of the task's pages, those that are resident; 1 for a task without pages."""
        need = self.needs[task]
        return float(self.resident[need].mean()) if len(need) else 1.0
