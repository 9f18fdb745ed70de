"""How often each task will be used soon, by how tasks have followed each other."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

DISCOUNT = 0.5
"""What a use is worth that comes one switch later."""


def expected_reuse(switches: npt.NDArray[np.integer], task: int) -> npt.NDArray[np.float64]:
    """Expected uses of each task after ``task``, one k switches away counting `DISCOUNT` to the power of k - 1.

    Args:
        switches: [tasks, tasks], how often one task was followed by another. Tasks of which nothing is known yet are
            followed by any other with the same probability.
        task: the one that runs next.
    """
    return expected_uses(switches, _chances(switches)[task], DISCOUNT)


def expected_uses(
    switches: npt.NDArray[np.integer], following: npt.NDArray[np.floating], discount: float | npt.NDArray[np.floating]
) -> npt.NDArray[np.float64]:
    """Expected uses of each task [tasks], counted like `expected_reuse`, when the next one is known by its chances.

    With p those chances, P the matrix of transition probabilities and G a diagonal of discounts: ``p (I - G P)^-1``.

    Args:
        switches: [tasks, tasks], how often one task was followed by another.
        following: [tasks], probability that each is the next.
        discount: what a use is worth that comes one switch later; or, for each task, what follows it [tasks].
    """
    chances = _chances(switches)
    later = np.broadcast_to(discount, len(chances))[:, None] * chances
    uses: npt.NDArray[np.float64] = np.linalg.solve((np.eye(len(chances)) - later).T, following)
    return uses


def _chances(switches: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    count = len(switches)
    counts = switches + (1 - np.eye(count)) / max(1, count - 1)
    chances: npt.NDArray[np.float64] = counts / np.maximum(counts.sum(1, keepdims=True), 1e-300)
    return chances
