"""``page-index.safetensors``: for every page its id, its model layer and the tasks that need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.errors import BundleFormatError

FILE = "page-index.safetensors"


@dataclass(frozen=True)
class PageIndex:
    """Immutable facts about the pages, in bundle order.

    Attributes:
        ids: uint8 [pages, 32], BLAKE3 digests.
        layers: int32 [pages], never decreasing inside a page file: pages lie in execution order there.
        signatures: uint64 [pages], bit t set where task t needs the page.
    """

    ids: npt.NDArray[np.uint8]
    layers: npt.NDArray[np.int32]
    signatures: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.layers)

    def of_task(self, task: int) -> npt.NDArray[np.int64]:
        """Indices of the pages that task number ``task`` needs, ascending."""
        return np.flatnonzero((self.signatures >> np.uint64(task)) & np.uint64(1))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """What the file holds."""
        return {"ids": self.ids, "layers": self.layers, "signatures": self.signatures}

    @classmethod
    def parse(cls, arrays: dict[str, npt.NDArray[np.generic]], page_files: Sequence[int], layers: int) -> PageIndex:
        """Validate what a file held.

        Args:
            arrays: its tensors.
            page_files: number of pages in each page file.
            layers: number of model layers.

        Raises:
            BundleFormatError: a tensor is missing or not what the manifest says.
        """
        pages = sum(page_files)
        wanted = {
            "ids": (np.dtype(np.uint8), (pages, 32)),
            "layers": (np.dtype(np.int32), (pages,)),
            "signatures": (np.dtype(np.uint64), (pages,)),
        }
        if set(arrays) != set(wanted):
            raise BundleFormatError(FILE, "tensors", sorted(wanted), sorted(arrays))
        for name, (dtype, shape) in wanted.items():
            found = arrays[name]
            if found.dtype != dtype or found.shape != shape:
                raise BundleFormatError(FILE, name, f"{dtype} {shape}", f"{found.dtype} {found.shape}")
        for of_page in np.split(arrays["layers"].astype(np.int64), np.cumsum(page_files)[:-1]):
            if len(of_page) and not (of_page[0] >= 0 and of_page[-1] < layers and (np.diff(of_page) >= 0).all()):
                expected = f"rising from 0 to at most {layers - 1} in each page file"
                raise BundleFormatError(FILE, "layers", expected, "other values")
        return cls(**arrays)  # type: ignore[arg-type]
