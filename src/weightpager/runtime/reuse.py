"""How often each task will be used soon, by how tasks have followed each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DISCOUNT = 0.5
"""What a use is worth that comes one switch later."""


def expected_reuse(switches: npt.NDArray[np.integer], task: int) -> npt.NDArray[np.float64]:
    """Expected uses of each task after ``task``, one k switches away counting `DISCOUNT` to the power of k - 1.

    With P the matrix of transition probabilities and g the discount, row ``task`` of ``P (I - g P)^-1``. Tasks of which
    nothing is known yet are followed by any other with the same probability.

    Args:
        switches: [tasks, tasks], how often one task was followed by another.
        task: the one that runs next.
    """
    count = len(switches)
    counts = switches + (1 - np.eye(count)) / max(1, count - 1)
    chances = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    start = np.zeros(count)
    start[task] = 1.0
    ahead: npt.NDArray[np.float64] = np.linalg.solve(np.eye(count) - DISCOUNT * chances.T, start) @ chances
    return ahead
