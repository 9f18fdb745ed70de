"""Host memory of the caller's own that pages are read into, beside the arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from weightpager.machine.direct_file import ALIGNMENT
from weightpager.runtime.memory.page_arena import Stage
from weightpager.runtime.memory.read_fence import Event


class PageBuffer:
    """Rows of an array as slots. Nobody reads them before the pager has told that their pages came."""

    def __init__(self, rows: npt.NDArray[np.uint8]) -> None:
        """Take an array.

        Args:
            rows: uint8 [slots, page_bytes], contiguous and aligned as direct reads want it; `aligned_memory` is.

        Raises:
            ValueError: it isn't.
        """
        if rows.dtype != np.uint8 or rows.ndim != 2 or not rows.flags.c_contiguous or not rows.flags.writeable:
            raise ValueError("expected a contiguous uint8 array [pages, page_bytes] that may be written to")
        beyond = rows.ctypes.data % ALIGNMENT if rows.size else 0
        if beyond:
            raise ValueError(f"expected memory on a boundary of {ALIGNMENT} bytes, found it {beyond} bytes behind one")
        self.rows = rows
        self.page_bytes = rows.shape[1]

    def stage(self) -> Stage:
        return self

    def address(self, slots: npt.NDArray[np.int64]) -> int:  # noqa: ARG002 - the protocol's
        return int(self.rows.ctypes.data)

    def reads(self) -> Sequence[Event]:
        """No kernel reads these."""
        return ()

    def views(self, slots: Sequence[int]) -> list[memoryview]:
        return [self.rows[slot].data for slot in slots]

    def place(self, slots: Mapping[int, int], after: Sequence[Event]) -> None:
        """Nothing to do: pages were read into their rows."""

    def give_back(self) -> None:
        """There is nothing to give back."""
