"""How much tasks share: overlap(A→B), the kept bytes of B that A keeps too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.bundle.reader import Bundle


def overlap(bundle: Bundle) -> npt.NDArray[np.float64]:
    """float64 [tasks, tasks]: entry (A, B) = kept bytes of A∩B ÷ kept bytes of B; 1 on the diagonal."""
    kept = [bundle.kept_locations(task) for task in bundle.tasks]
    matrix = np.ones((len(kept), len(kept)))
    for a, of_a in enumerate(kept):
        for b, of_b in enumerate(kept):
            if a != b and len(of_b):
                matrix[a, b] = np.isin(of_b, of_a, assume_unique=True).mean()
    return matrix


def mean_overlap(matrix: npt.NDArray[np.float64]) -> float:
    """Mean over all ordered pairs of different tasks; 1 for a single task."""
    pairs = ~np.eye(len(matrix), dtype=bool)
    return float(matrix[pairs].mean()) if pairs.any() else 1.0
