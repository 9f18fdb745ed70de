"""``permutations.safetensors``: in which order the compiler has put the tensors' rows and columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.tensor_header import Header
from weightpager.errors import BundleFormatError

FILE = "permutations.safetensors"

_SHARED = "base_model."


@dataclass(frozen=True)
class Permutations:
    """The order of tensors' axes, against the model that was compiled.

    Attributes:
        orders: (tensor, axis) → int64 [size]: position i holds what the original has at ``order[i]``. A tensor of the
            base goes by its canonical name, any other one as ``TASK/NAME``.
    """

    orders: Mapping[tuple[str, int], npt.NDArray[np.int64]]

    def of(self, task: str, name: str) -> dict[int, npt.NDArray[np.int64]]:
        """Axis → order of one of a task's tensors, by canonical name; empty where it lies as it did."""
        key = name if name.startswith(_SHARED) else f"{task}/{name}"
        return {axis: order for (tensor, axis), order in self.orders.items() if tensor == key}

    def only(self, tasks: Collection[str]) -> Permutations:
        """Those of the base and of these tasks."""
        return Permutations(
            {
                (tensor, axis): order
                for (tensor, axis), order in self.orders.items()
                if tensor.startswith(_SHARED) or tensor.partition("/")[0] in tasks
            }
        )

    def inverse(self) -> Permutations:
        """The orders that put everything back."""
        return Permutations({key: np.argsort(order) for key, order in self.orders.items()})

    def arrays(self) -> dict[str, npt.NDArray[np.int32]]:
        """As `parse` reads them."""
        return {f"{tensor}:{axis}": order.astype(np.int32) for (tensor, axis), order in sorted(self.orders.items())}

    @classmethod
    def parse(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Permutations:
        """Check the tensors of a file with the right header.

        Raises:
            BundleFormatError: a name or an order isn't one.
        """
        orders = {}
        for name, array in arrays.items():
            tensor, _, axis = name.rpartition(":")
            if not tensor or axis not in ("0", "1", "2", "3"):
                raise BundleFormatError(FILE, name, "TENSOR:AXIS, axes from 0 to 3", "another name")
            if not np.array_equal(np.sort(array), np.arange(len(array))):
                raise BundleFormatError(FILE, name, f"each of 0 to {len(array) - 1} once", "other indices")
            orders[tensor, int(axis)] = array.astype(np.int64)
        return cls(orders)


def check_header(header: Header) -> None:
    """Refuse a file that holds anything else than lists of indices.

    Raises:
        BundleFormatError: a dtype or a shape is another one.
    """
    for name, stated in header.items():
        if stated.dtype != "int32" or len(stated.shape) != 1:
            raise BundleFormatError(FILE, name[:400], "int32 [size]", stated)


NOTHING_MOVED = Permutations({})
"""Everything lies where it did."""
