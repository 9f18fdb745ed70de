"""``page-index.safetensors``: for every page its id, its model layer and the tasks that need it.

Pages of rows come last. Their layer is 0, and no task's blocks are in them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.tensor_header import Header, TensorInfo
from weightpager.errors import BundleFormatError

FILE = "page-index.safetensors"


@dataclass(frozen=True)
class PageIndex:
    """Immutable facts about the pages, in bundle order.

    Attributes:
        ids: uint8 [pages, 32], BLAKE3 digests.
        layers: int32 [pages], the model layer of each.
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
        """The file's arrays by name."""
        return {"ids": self.ids, "layers": self.layers, "signatures": self.signatures}

    def first(self, pages: int) -> PageIndex:
        """Only the first pages."""
        return PageIndex(self.ids[:pages], self.layers[:pages], self.signatures[:pages])

    def with_rows(self, ids: npt.NDArray[np.uint8]) -> PageIndex:
        """The index with pages of rows behind these; ``ids`` is uint8 [row pages, 32]."""
        return PageIndex(
            np.concatenate([self.ids, ids]),
            np.concatenate([self.layers, np.zeros(len(ids), np.int32)]),
            np.concatenate([self.signatures, np.zeros(len(ids), np.uint64)]),
        )

    @staticmethod
    def check_header(header: Header, pages: int) -> None:
        """Refuse a file that holds anything else than the entries of so many pages.

        Raises:
            BundleFormatError: a tensor is missing, not what the manifest says, or one too many.
        """
        wanted = {
            "ids": TensorInfo("uint8", (pages, 32)),
            "layers": TensorInfo("int32", (pages,)),
            "signatures": TensorInfo("uint64", (pages,)),
        }
        if header.keys() != wanted.keys():
            raise BundleFormatError(FILE, "tensors", sorted(wanted), str(sorted(header))[:400])
        for name, expected in wanted.items():
            if header[name] != expected:
                raise BundleFormatError(FILE, name, expected, header[name])

    @classmethod
    def parse(cls, arrays: dict[str, npt.NDArray[np.generic]], layers: int) -> PageIndex:
        """Validate what a file with the right header held.

        Args:
            arrays: its tensors.
            layers: number of model layers.

        Raises:
            BundleFormatError: a value is not what the manifest says.
        """
        of_page = arrays["layers"].astype(np.int64)
        if len(of_page) and not 0 <= of_page.min() <= of_page.max() < layers:
            raise BundleFormatError(FILE, "layers", f"from 0 to at most {layers - 1}", "other values")
        return cls(**arrays)  # type: ignore[arg-type]
