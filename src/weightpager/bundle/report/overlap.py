"""How much tasks share: overlap(A→B), the kept bytes of B that A keeps too."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from weightpager.bundle.reader import Bundle

_CHUNK = 1 << 16


def overlap(bundle: Bundle) -> npt.NDArray[np.float64]:
    """`overlap_of` the blocks that lie in a bundle's pages, which are all of one size."""
    signatures, counts = np.unique(bundle.placement.users(), return_counts=True)
    shared = np.zeros((len(bundle.tasks), len(bundle.tasks)))
    for start in range(0, len(signatures), _CHUNK):
        some = slice(start, start + _CHUNK)
        bits = signatures[some, None] >> np.arange(len(bundle.tasks), dtype=np.uint64)
        shared += _shared(bits & np.uint64(1) > 0, counts[some])
    return _by_need(shared)


def overlap_of(keep: npt.NDArray[np.bool_], weights: npt.ArrayLike | None = None) -> npt.NDArray[np.float64]:
    """What a switch need not load: ``[A, B]`` is (kept by A and by B) / (kept by B), and 1 where B keeps nothing.

    Args:
        keep: [blocks, tasks] masks.
        weights: [blocks], the bytes of each block; None counts blocks.
    """
    size = np.ones(len(keep)) if weights is None else np.asarray(weights, np.float64)
    if size.shape != keep.shape[:1]:
        raise ValueError(f"weights: expected one for each of {len(keep)} blocks, got shape {size.shape}")
    return _by_need(_shared(keep, size))


def _shared(keep: npt.NDArray[np.bool_], sizes: npt.NDArray[np.number]) -> npt.NDArray[np.float64]:
    """What A and B both keep, [A, B]."""
    shared: npt.NDArray[np.float64] = np.where(keep, sizes[:, None], 0.0).T @ keep
    return shared


def _by_need(shared: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    needed = shared.diagonal()
    return np.divide(shared, needed, out=np.ones_like(shared), where=needed > 0)


def mean_overlap(matrix: npt.NDArray[np.float64]) -> float:
    """Mean over all ordered pairs of different tasks; 1 for a single task."""
    pairs = ~np.eye(len(matrix), dtype=bool)
    return float(matrix[pairs].mean()) if pairs.any() else 1.0
