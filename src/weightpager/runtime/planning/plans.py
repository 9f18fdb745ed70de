"""What plans are made from, and the plan of a switch: pure data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Pages = npt.NDArray[np.int64]

NO_PAGES: Pages = np.zeros(0, np.int64)

Uses = npt.NDArray[np.floating]
"""[tasks], how often each task is expected to be used in the near future."""


@dataclass(frozen=True, eq=False)
class Occupancy:
    """A copy of what is where in an arena.

    Attributes:
        resident: bool [pages].
        loading: bool [pages], those that a slot is reserved for.
        locked: bool [pages], those that may not go.
        free: slots that nothing is in or on its way to.
    """

    resident: npt.NDArray[np.bool_]
    loading: npt.NDArray[np.bool_]
    locked: npt.NDArray[np.bool_]
    free: int


@dataclass(frozen=True)
class SwitchPlan:
    """The two phases of a switch: prepare, and where both tasks don't fit together, commit.

    Attributes:
        evict: resident pages that no task in use needs, given up in the prepare phase.
        loading: pages that an earlier load is bringing already.
        prepare: pages loaded while the previous task is still whole; ascending.
        commit: pages for which the previous task must be given up first; ascending. Empty if both fit together.
        evict_previous: pages of the previous task that are given up for these.
    """

    evict: Pages
    loading: Pages
    prepare: Pages
    commit: Pages
    evict_previous: Pages

    @property
    def has_prepare_phase(self) -> bool:
        """Whether pages are to come while the previous task is still whole."""
        return len(self.prepare) + len(self.loading) > 0

    @property
    def needs_commit(self) -> bool:
        """Whether the previous task must be given up."""
        return len(self.commit) > 0

    def commit_phase(self) -> SwitchPlan:
        """What remains once the prepare phase has ended and the previous task has been given up."""
        return _one_phase(evict=self.evict_previous, loading=NO_PAGES, prepare=self.commit)

    def merged(self) -> SwitchPlan:
        """Both phases in one, once the previous task has been given up."""
        return _one_phase(
            evict=np.concatenate([self.evict, self.evict_previous]),
            loading=self.loading,
            prepare=np.concatenate([self.prepare, self.commit]),
        )


def _one_phase(*, evict: Pages, loading: Pages, prepare: Pages) -> SwitchPlan:
    return SwitchPlan(evict, loading, prepare, commit=NO_PAGES, evict_previous=NO_PAGES)
