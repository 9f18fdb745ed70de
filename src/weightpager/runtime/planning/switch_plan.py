"""What a task switch will do: pure data, printed by ``weightpager plan``, carried out by the engine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]

NO_PAGES: Pages = np.zeros(0, np.int64)


@dataclass(frozen=True)
class SwitchPlan:
    """The two phases of a switch.

    Attributes:
        evict: resident pages that no task in use needs, given up in the prepare phase.
        loading: pages that an earlier load is bringing already.
        prepare: pages loaded while the old task is still whole; in execution order.
        commit: pages for which the old task must be given up first; in execution order. Empty if both fit together.
    """

    evict: Pages
    loading: Pages
    prepare: Pages
    commit: Pages

    @property
    def pages(self) -> int:
        """Pages to load: the differential set."""
        return len(self.prepare) + len(self.commit)
