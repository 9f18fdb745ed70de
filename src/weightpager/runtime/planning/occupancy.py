"""A copy of what is where in an arena, for plans."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Occupancy:
    """What is where.

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
