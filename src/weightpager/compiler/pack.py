"""Packing: which block goes to which place of which page.

Blocks that the same tasks keep lie together, so that what is loaded together is read together. Signature grouping is a
heuristic: a page may hold blocks of several signatures, and a task then loads some bytes that it doesn't use
(over-read). Of the page sizes that waste little memory, the one with the least expected time of a switch is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.store import StorageModel, coalesce

PAGE_SIZES = tuple(1 << bits for bits in range(12, 21))
"""4 KiB, which direct reads need, to 1 MiB, beyond which no read is faster."""

OVER_READ_LIMIT = 0.05
"""Share of a task's pages that it may not use, on average. Large pages read faster, but every task then needs every
page: paging would save no memory."""

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
        counts: npt.NDArray[np.int64] = ((self.signatures[:, None] & bits) != 0).sum(0)
        return counts


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
    """The packing whose page size makes an average switch fastest without wasting memory.

    Sizes whose mean over-read exceeds `OVER_READ_LIMIT` are out, unless all are: then the least over-read wins.
    """
    sizes = [size for size in PAGE_SIZES if size % block_bytes == 0]
    packings = [pack(kept, size, block_bytes) for size in reversed(sizes)]
    tasks = len(switch_rate)
    frugal = [packing for packing in packings if mean_over_read(packing, kept, tasks) <= OVER_READ_LIMIT]
    if not frugal:
        return min(packings, key=lambda packing: mean_over_read(packing, kept, tasks))
    return min(frugal, key=lambda packing: expected_seconds(packing, switch_rate, storage))


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


def over_read(packing: Packing, kept: Sequence[KeptBlocks], tasks: int) -> npt.NDArray[np.float64]:
    """Per task, [tasks]: the share of its pages' bytes that it doesn't use."""
    bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
    used = sum(((weight.signatures[:, None] & bits) != 0).sum(0) for weight in kept)
    places = packing.page_counts(tasks) * packing.blocks_per_page
    return np.asarray(1.0 - used / np.maximum(places, 1))


def mean_over_read(packing: Packing, kept: Sequence[KeptBlocks], tasks: int) -> float:
    """Mean of `over_read` over the tasks."""
    return float(over_read(packing, kept, tasks).mean())


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
