"""Expands block tables natively, where the native module has been built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from weightpager.kernels.choice import NATIVE

if NATIVE:  # else no `BlockTableExpander` can be made
    from weightpager.kernels import _native


class BlockTableExpander:
    """Knows which block lies in each place, and expands the tables of any task.

    `weightpager.bundle.format.placement.Placement.tables` says what is right. Nothing is checked here.

    Args:
        blocks: uint16 or uint32 [pages, places], a block's number in its layer.
        layers: int32 [pages].
        page_numbers: int64 [pages], what locations call them.
        starts: int64 [layers + 1], the number in the bundle of each layer's first block.
        grids: of each paged weight the number of its first block, rows and columns.
    """

    def __init__(
        self,
        blocks: npt.NDArray[np.unsignedinteger],
        layers: npt.NDArray[np.int32],
        page_numbers: npt.NDArray[np.int64],
        starts: npt.NDArray[np.int64],
        grids: Sequence[tuple[int, int, int]],
    ) -> None:
        self._kept = tuple(map(np.ascontiguousarray, (blocks, layers, page_numbers, starts)))  # what it points to
        places, of_pages, numbers, of_layers = (array.ctypes.data for array in self._kept)
        pages, per_page = blocks.shape
        self._native = _native.TableExpander(
            places, of_pages, numbers, of_layers, pages, per_page, blocks.itemsize == 4, int(starts[-1]), list(grids)
        )
        self._rows = sum(rows + 1 for _, rows, _ in grids)

    def expand(self, used: npt.NDArray[np.uint8], out: npt.NDArray[np.int32]) -> None:
        """Write a task's tables, given its bits: all weights' rows, then their columns, then their locations."""
        kept = (len(out) - self._rows) // 2
        start = out.ctypes.data
        columns = start + self._rows * 4
        self._native.expand(used.ctypes.data, start, columns, columns + kept * 4)
