"""How much tasks share: overlap(A→B), the kept bytes of B that A keeps too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.bundle.reader import Bundle

_CHUNK = 1 << 16


def overlap(bundle: Bundle) -> npt.NDArray[np.float64]:
    """float64 [tasks, tasks]: entry (A, B) = kept bytes of A∩B ÷ kept bytes of B; 1 on the diagonal."""
    users = np.zeros(len(bundle.pages) * bundle.manifest.blocks_per_page, np.uint64)  # signature of each location
    for number, task in enumerate(bundle.tasks):
        users[bundle.kept_locations(task)] |= np.uint64(1) << np.uint64(number)
    signatures, counts = np.unique(users, return_counts=True)
    shared = np.zeros((len(bundle.tasks), len(bundle.tasks)))  # [A, B], blocks that both keep
    for start in range(0, len(signatures), _CHUNK):
        some = slice(start, start + _CHUNK)
        bits = signatures[some, None] >> np.arange(len(bundle.tasks), dtype=np.uint64)
        member = (bits & np.uint64(1)).astype(np.float64)  # [signatures, tasks]
        shared += (member * counts[some, None]).T @ member
    own = shared.diagonal()
    return np.divide(shared, own, out=np.ones(shared.shape), where=own > 0)


def mean_overlap(matrix: npt.NDArray[np.float64]) -> float:
    """Mean over all ordered pairs of different tasks; 1 for a single task."""
    pairs = ~np.eye(len(matrix), dtype=bool)
    return float(matrix[pairs].mean()) if pairs.any() else 1.0
