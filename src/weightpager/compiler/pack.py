"""Packing: which block goes to which place of which page.

Blocks that the same tasks keep lie together, so that what is loaded together is read together. Signature grouping is a
heuristic: a page may hold blocks of several signatures, and a task then loads some bytes that it doesn't use
(over-read). Page size is chosen for the least expected time of a switch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.store import StorageModel, coalesce

PAGE_SIZES = tuple(1 << bits for bits in range(14, 21))
"""16 KiB to 1 MiB: below, storage is slow; above, pages hold too much that only some tasks need."""

Signatures = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class KeptBlocks:
    """The kept blocks of one paged weight.

    Attributes:
        layer: model layer of the weight.
        signatures: uint64 [blocks of the grid, row-major]; 0 where no task keeps the block.
    """

    layer: int
    signatures: Signatures

    @classmethod
    def of(cls, layer: int, keep: npt.NDArray[np.bool_]) -> KeptBlocks:
        """From a keep mask ``[blocks, tasks]``."""
        bits = np.uint64(1) << np.arange(keep.shape[1], dtype=np.uint64)
        return cls(layer, (keep * bits).sum(1, dtype=np.uint64))


@dataclass(frozen=True)
class Packing:
    """Where every stored block lies.

    Attributes:
        page_bytes: bytes of a page.
        blocks_per_page: places in a page.
        weights: int32 [pages × blocks_per_page], index of the weight whose block lies there, -1 where none does.
        blocks: int64, same shape: the block's index in that weight's grid.
        layers: int32 [pages].
        signatures: uint64 [pages].
    """

    page_bytes: int
    blocks_per_page: int
    weights: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int64]
    layers: npt.NDArray[np.int32]
    signatures: Signatures

    @property
    def fill(self) -> float:
        """Fraction of the places that hold a block."""
        return float((self.weights >= 0).mean())

    def locations(self, weight: int, blocks: int) -> npt.NDArray[np.int64]:
        """Location of each of a weight's ``blocks`` blocks, -1 where none is stored."""
        found = np.full(blocks, -1, np.int64)
        here = np.flatnonzero(self.weights == weight)
        found[self.blocks[here]] = here
        return found

    def page_counts(self, tasks: int) -> npt.NDArray[np.int64]:
        """Pages that each task needs, [tasks]."""
        bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
        return ((self.signatures[:, None] & bits) != 0).sum(0)


def pack(kept: Sequence[KeptBlocks], page_bytes: int, block_bytes: int) -> Packing:
    """Lay out blocks layer by layer; a page never holds blocks of two layers.

    Args:
        kept: of every paged weight, in execution order.
        page_bytes: bytes of a page.
        block_bytes: bytes of a block, which divides a page.
    """
    places = page_bytes // block_bytes
    weights, blocks, layers, signatures = [], [], [], []
    for layer in sorted({weight.layer for weight in kept}):
        of_weight, of_block, signature = _layer_blocks(kept, layer)
        order = np.lexsort((of_block, of_weight, _ranks(signature)))
        pages = -(-len(order) // places)
        padding = pages * places - len(order)
        weights.append(np.pad(of_weight[order], (0, padding), constant_values=-1))
        blocks.append(np.pad(of_block[order], (0, padding)))
        padded = np.pad(signature[order], (0, padding)).reshape(pages, places)
        signatures.append(np.bitwise_or.reduce(padded, axis=1, initial=0))
        layers.append(np.full(pages, layer, np.int32))
    return Packing(
        page_bytes,
        places,
        np.concatenate(weights).astype(np.int32),
        np.concatenate(blocks),
        np.concatenate(layers),
        np.concatenate(signatures).astype(np.uint64),
    )


def pack_best(
    kept: Sequence[KeptBlocks],
    block_bytes: int,
    switch_rate: npt.NDArray[np.float64],
    storage: StorageModel,
) -> Packing:
    """The packing whose page size makes an average switch load fastest; of equals, the largest page."""
    sizes = [size for size in PAGE_SIZES if size % block_bytes == 0] or [block_bytes]
    packings = [pack(kept, size, block_bytes) for size in reversed(sizes)]
    return min(packings, key=lambda packing: expected_seconds(packing, switch_rate, storage))


def expected_seconds(packing: Packing, switch_rate: npt.NDArray[np.float64], storage: StorageModel) -> float:
    """Mean time to load a switch's differential set: Σ π_t P_tu · (reads · cost + bytes / bandwidth)."""
    total = 0.0
    for (current, following), rate in np.ndenumerate(switch_rate):
        if rate > 0 and current != following:
            pages = differential(packing.signatures, current, following)
            runs = coalesce(pages.tolist(), lambda _: len(packing.signatures), packing.page_bytes)
            total += rate * storage.seconds(len(runs), len(pages) * packing.page_bytes)
    return total


def differential(signatures: Signatures, current: int, following: int) -> npt.NDArray[np.int64]:
    """Pages that task ``following`` needs and task ``current`` doesn't, ascending."""
    has = (signatures >> np.uint64(following)) & np.uint64(1)
    had = (signatures >> np.uint64(current)) & np.uint64(1)
    return np.flatnonzero(has & ~had)


def over_read(packing: Packing, kept: Sequence[KeptBlocks], tasks: Sequence[str]) -> Mapping[str, float]:
    """Per task: bytes of its pages that it doesn't use, as a fraction of those bytes."""
    counts = packing.page_counts(len(tasks)) * packing.blocks_per_page
    every = np.concatenate([weight.signatures for weight in kept])
    result = {}
    for number, task in enumerate(tasks):
        used = int(((every >> np.uint64(number)) & np.uint64(1)).sum())
        result[task] = 1.0 - used / int(counts[number]) if counts[number] else 0.0
    return result


def _layer_blocks(
    kept: Sequence[KeptBlocks], layer: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Signatures]:
    """Weight index, block index and signature of each kept block of a layer."""
    weights, blocks, signatures = [], [], []
    for number, weight in enumerate(kept):
        if weight.layer == layer:
            found = np.flatnonzero(weight.signatures)
            weights.append(np.full(len(found), number))
            blocks.append(found)
            signatures.append(weight.signatures[found])
    return np.concatenate(weights), np.concatenate(blocks), np.concatenate(signatures)


def _ranks(signatures: Signatures) -> npt.NDArray[np.int64]:
    """Position of each block's signature in a chain of similar neighbours.

    Along the chain every task's groups should form few runs, since each run is a read: a run begins where a task's bit
    turns on, so the chain goes to the nearest signature by Hamming distance, from the set of the most tasks on.
    """
    present, inverse = np.unique(signatures, return_inverse=True)
    rest = sorted((int(signature) for signature in present), key=lambda s: (-s.bit_count(), s))
    chain = rest[:1]
    rest = rest[1:]
    while rest:
        nearest = min(rest, key=lambda s: (s ^ chain[-1]).bit_count())
        rest.remove(nearest)
        chain.append(nearest)
    rank = {signature: position for position, signature in enumerate(chain)}
    return np.array([rank[int(signature)] for signature in present], np.int64)[inverse]
