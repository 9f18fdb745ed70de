"""``placement.safetensors``: which block lies in each place of each page, and which of these blocks each task uses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.bundle.files.tensor_file import Header, TensorInfo
from weightpager.bundle.format.block_table import BlockNumbers, BlockTable, Int64
from weightpager.bundle.format.manifest import Manifest
from weightpager.bundle.format.names import BASE
from weightpager.distinct import distinct
from weightpager.errors import BundleFormatError

FILE = "placement.safetensors"

Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Placement:
    """Block tables of all tasks: a block's number once for each place, and a bit for each place and task.

    A block that several tasks have own values of lies in several places. A task uses at most one of these.

    Attributes:
        numbers: the numbers that blocks have in the bundle.
        layers: int32 [pages], the model layer of each page.
        blocks: uint16 or uint32 [pages, places], the number in its layer of the block in each place.
        used: uint8 [tasks, ⌈pages · places / 8⌉], bit ``location % 8`` of byte ``location // 8`` set where the task
            uses the block.
    """

    numbers: BlockNumbers
    layers: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.unsignedinteger]
    used: Bits

    @classmethod
    def of(
        cls,
        numbers: BlockNumbers,
        layers: npt.NDArray[np.int32],
        blocks: npt.NDArray[np.integer],
        used: Iterable[npt.NDArray[np.integer]],
    ) -> Placement:
        """The placement of numbers in layers [pages, places], given the locations that each task uses."""
        bits = []
        for locations in used:
            flags = np.zeros(blocks.size, bool)
            flags[locations] = True
            bits.append(np.packbits(flags, bitorder="little"))
        return cls(numbers, layers, blocks.astype(numbers.dtype), np.stack(bits))

    @property
    def locations(self) -> int:
        return int(self.blocks.size)

    @property
    def nbytes(self) -> int:
        return self.blocks.nbytes + self.used.nbytes

    def without_blocks(self) -> npt.NDArray[np.bool_]:
        """Which pages hold no block at all, [pages]."""
        return np.asarray((self.blocks == self.numbers.unused).all(1))

    def followed_by_empty(self, layers: npt.NDArray[np.int32]) -> Placement:
        """The placement with further pages of these layers, which hold no block."""
        places = self.blocks.shape[1]
        blocks = np.concatenate([self.blocks, np.full((len(layers), places), self.numbers.unused, self.blocks.dtype)])
        used = np.pad(self.used, [(0, 0), (0, -(-blocks.size // 8) - self.used.shape[1])])
        return Placement(self.numbers, np.concatenate([self.layers, layers]), blocks, used)

    def kept(self, task: int) -> int:
        return int(np.unpackbits(self.used[task]).sum())

    def locations_of(self, task: int) -> Int64:
        """Locations of all blocks that a task uses, ascending."""
        return np.flatnonzero(np.unpackbits(self.used[task], count=self.locations, bitorder="little"))

    def users(self) -> npt.NDArray[np.uint64]:
        """The signature of each location, uint64 [locations]."""
        signatures = np.zeros(self.locations, np.uint64)
        for task in range(len(self.used)):
            signatures[self.locations_of(task)] |= np.uint64(1) << np.uint64(task)
        return signatures

    def signatures(self) -> npt.NDArray[np.uint64]:
        """The signature of each page, [pages]."""
        return np.asarray(np.bitwise_or.reduce(self.users().reshape(self.blocks.shape), axis=1, initial=0), np.uint64)

    def numbers_at(self, locations: npt.NDArray[np.integer]) -> Int64:
        """The numbers in the bundle of the blocks that lie there."""
        pages = locations // self.blocks.shape[1]
        return np.asarray(self.numbers.starts[self.layers[pages]] + self.blocks.reshape(-1)[locations])

    def by_weight(self) -> list[tuple[Int64, Int64]]:
        """Each paged weight's blocks: their indices in its grid, ascending, and their locations."""
        there = np.flatnonzero(self.blocks.reshape(-1) != self.numbers.unused)
        return self._sorted(there)

    def tables(self, task: int, pages: npt.NDArray[np.integer] | None = None) -> dict[str, BlockTable]:
        """A task's block tables, by paged weight in manifest order.

        Args:
            task: number of the task.
            pages: numbers that pages have in these tables [pages]; their positions in the bundle if None.
        """
        tables = {}
        for name, grid, (blocks, locations) in zip(
            self.numbers.names, self.numbers.grids, self._sorted(self.locations_of(task)), strict=True
        ):
            crow = np.searchsorted(blocks, np.arange(grid.rows + 1) * grid.cols).astype(np.int32)
            if pages is not None:
                page, place = np.divmod(locations, self.blocks.shape[1])
                locations = pages[page] * self.blocks.shape[1] + place
            tables[name] = BlockTable(crow, (blocks % grid.cols).astype(np.int32), locations.astype(np.int32))
        return tables

    def table_bytes(self, task: int) -> int:
        return 4 * (sum(self.numbers.rows) + len(self.numbers.rows) + 2 * self.kept(task))

    def only(self, pages: npt.NDArray[np.bool_], tasks: Sequence[int]) -> Placement:
        """The placement of some of the pages [pages] and tasks alone; the tasks use nothing in other pages."""
        places = self.blocks.shape[1]
        kept = np.repeat(pages, places)
        moved = np.cumsum(kept) - 1
        used = [moved[self.locations_of(task)] for task in tasks]
        return Placement.of(self.numbers, self.layers[pages], self.blocks[pages], used)

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {"blocks": self.blocks, "used": self.used}

    @staticmethod
    def header(numbers: BlockNumbers, manifest: Manifest) -> Header:
        """What the manifest's counts say of the file."""
        pages, places = manifest.pages, manifest.blocks_per_page
        return {
            "blocks": TensorInfo(str(numbers.dtype), (pages, places)),
            "used": TensorInfo("uint8", (len(manifest.tasks), -(-pages * places // 8))),
        }

    def validate(self) -> None:
        """Refuse numbers that no block of a page's layer has, and bits that can't be."""
        counts = np.diff(self.numbers.starts)[self.layers]  # [pages]
        unused = self.blocks == self.numbers.unused
        if (~unused & (self.blocks >= counts[:, None])).any():
            raise BundleFormatError(FILE, "blocks", "numbers of blocks of the page's layer", "larger ones")
        empty = np.packbits(unused, bitorder="little")
        beyond = np.packbits(np.arange(8) >= (self.locations - 1) % 8 + 1, bitorder="little")
        for task, bits in enumerate(self.used):
            if (bits & empty).any() or (len(bits) and bits[-1] & beyond[0]):
                raise BundleFormatError(FILE, f"used.{task}", "bits of places that hold a block", "others")
            numbers = self.numbers_at(self.locations_of(task))
            if len(distinct(numbers)) != len(numbers):
                raise BundleFormatError(FILE, f"used.{task}", "one location for each block of a task", "several")

    def _sorted(self, locations: Int64) -> list[tuple[Int64, Int64]]:
        """Each paged weight's blocks among some locations, as `by_weight`; ordered by block and then by location."""
        numbers = self.numbers_at(locations)
        order = np.argsort(numbers, kind="stable")
        numbers, locations = numbers[order], locations[order]
        parts = self.numbers.split(numbers)
        return [(numbers[part] - first, locations[part]) for part, first in zip(parts, self.numbers.first, strict=True)]


PERMUTATIONS = "permutations.safetensors"


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
        key = name if name.startswith(BASE) else f"{task}/{name}"
        return {axis: order for (tensor, axis), order in self.orders.items() if tensor == key}

    def only(self, tasks: Collection[str]) -> Permutations:
        """Those of the base and of these tasks."""
        return Permutations(
            {
                (tensor, axis): order
                for (tensor, axis), order in self.orders.items()
                if tensor.startswith(BASE) or tensor.partition("/")[0] in tasks
            }
        )

    def inverse(self) -> Permutations:
        """The orders that put everything back."""
        return Permutations({key: np.argsort(order) for key, order in self.orders.items()})

    def arrays(self) -> dict[str, npt.NDArray[np.int32]]:
        return {f"{tensor}:{axis}": order.astype(np.int32) for (tensor, axis), order in sorted(self.orders.items())}

    @classmethod
    def parse(cls, arrays: Mapping[str, npt.NDArray[np.generic]]) -> Permutations:
        """Check the tensors of a file with the right header."""
        orders = {}
        for name, array in arrays.items():
            tensor, _, axis = name.rpartition(":")
            if not tensor or axis not in ("0", "1", "2", "3"):
                raise BundleFormatError(PERMUTATIONS, name, "TENSOR:AXIS, axes from 0 to 3", "another name")
            if not np.array_equal(np.sort(array), np.arange(len(array))):
                raise BundleFormatError(PERMUTATIONS, name, f"each of 0 to {len(array) - 1} once", "other indices")
            orders[tensor, int(axis)] = array.astype(np.int64)
        return cls(orders)


def check_header(header: Header) -> None:
    """Refuse a file that holds anything else than lists of indices."""
    for name, stated in header.items():
        if stated.dtype != "int32" or len(stated.shape) != 1:
            raise BundleFormatError(PERMUTATIONS, name[:400], "int32 [size]", stated)


NOTHING_MOVED = Permutations({})
"""Everything lies where it did."""
