"""What a task switch will do: pure data, printed by ``weightpager plan``, carried out by the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SwitchPlan:
    """The two phases of a switch.

    Attributes:
        evict: resident pages that nobody has locked, given up in the prepare phase.
        prepare: pages loaded while the old task is still whole; in execution order.
        release: the old task's own pages, given up in the commit phase; empty if both tasks fit together.
        commit: pages loaded after that; in execution order.
    """

    evict: Pages
    prepare: Pages
    release: Pages
    commit: Pages

    @property
    def pages(self) -> int:
        """Pages to load: the differential set."""
        return len(self.prepare) + len(self.commit)
