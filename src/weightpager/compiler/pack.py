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

SECONDS_PER_PAGE = 3e-6
"""What a page costs besides its bytes and its read: a hash, a slot, its place in the page table."""

Signatures = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class StoredBlocks:
    """What has to be stored of one paged weight: every version of every kept block.

    Attributes:
        layer: model layer of the weight.
        blocks: int64 [stored], the block's index in the weight's grid, row-major.
        signatures: uint64 [stored], the tasks that use this version of the block: those of one block don't meet.
    """

    layer: int
    blocks: npt.NDArray[np.int64]
    signatures: Signatures

    @classmethod
    def of(
        cls, layer: int, keep: npt.NDArray[np.bool_], versions: npt.NDArray[np.integer] | None = None
    ) -> StoredBlocks:
        """From a keep mask and, where tasks have values of their own, each task's version of each block.

        Args:
            layer: model layer of the weight.
            keep: ``[blocks, tasks]``.
            versions: ``[blocks, tasks]``: tasks with the same number share a block's values; None if all do.
        """
        bits = np.uint64(1) << np.arange(keep.shape[1], dtype=np.uint64)
        held = keep * bits  # [blocks, tasks]
        if versions is None:
            versions = np.zeros(keep.shape, np.int8)
        blocks, signatures = [], []
        for version in np.unique(versions):
            signature = np.where(versions == version, held, np.uint64(0)).sum(1, dtype=np.uint64)
            found = np.flatnonzero(signature)
            blocks.append(found)
            signatures.append(signature[found])
        return cls(layer, np.concatenate(blocks), np.concatenate(signatures))

    def used(self, tasks: int) -> npt.NDArray[np.int64]:
        """How many of them each task uses, [tasks]."""
        bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
        return np.asarray(((self.signatures[:, None] & bits) != 0).sum(0))


@dataclass(frozen=True)
class Packing:
    """Where every stored block lies.

    Attributes:
        page_bytes: bytes of a page.
        blocks_per_page: places in a page.
        weights: int32 [pages × blocks_per_page], index of the weight whose block lies there, -1 where none does.
        blocks: int64, same shape: the block's index in that weight's grid.
        users: uint64, same shape: signature of the tasks that use the block as it lies there.
        layers: int32 [pages].
        signatures: uint64 [pages].
    """

    page_bytes: int
    blocks_per_page: int
    weights: npt.NDArray[np.int32]
    blocks: npt.NDArray[np.int64]
    users: Signatures
    layers: npt.NDArray[np.int32]
    signatures: Signatures

    @property
    def fill(self) -> float:
        """Fraction of the places that hold a block."""
        return float((self.weights >= 0).mean())

    def locations(self, weight: int, blocks: int, task: int) -> npt.NDArray[np.int64]:
        """Where task number ``task`` finds each of a weight's ``blocks`` blocks, -1 where it keeps none."""
        found = np.full(blocks, -1, np.int64)
        uses = (self.users >> np.uint64(task) & np.uint64(1)).astype(bool)
        here = np.flatnonzero((self.weights == weight) & uses)
        found[self.blocks[here]] = here
        return found

    def page_counts(self, tasks: int) -> npt.NDArray[np.int64]:
        """Pages that each task needs, [tasks]."""
        bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
        counts: npt.NDArray[np.int64] = ((self.signatures[:, None] & bits) != 0).sum(0)
        return counts


def pack(stored: Sequence[StoredBlocks], page_bytes: int, block_bytes: int) -> Packing:
    """Lay out blocks layer by layer; a page never holds blocks of two layers.

    Args:
        stored: of every paged weight, in execution order.
        page_bytes: bytes of a page.
        block_bytes: bytes of a block; what they leave of a page holds nothing.
    """
    places = page_bytes // block_bytes
    weights, blocks, users, layers = [], [], [], []
    for layer in sorted({weight.layer for weight in stored}):
        of_weight, of_block, signature = _layer_blocks(stored, layer)
        order = np.lexsort((of_block, of_weight, _ranks(signature)))
        pages = -(-len(order) // places)
        padding = pages * places - len(order)
        weights.append(np.pad(of_weight[order], (0, padding), constant_values=-1))
        blocks.append(np.pad(of_block[order], (0, padding)))
        users.append(np.pad(signature[order], (0, padding)))
        layers.append(np.full(pages, layer, np.int32))
    of_place = np.concatenate(users).astype(np.uint64)
    return Packing(
        page_bytes,
        places,
        np.concatenate(weights).astype(np.int32),
        np.concatenate(blocks),
        of_place,
        np.concatenate(layers),
        np.bitwise_or.reduce(of_place.reshape(-1, places), axis=1, initial=0),
    )


def pack_best(
    stored: Sequence[StoredBlocks],
    block_bytes: int,
    switch_rate: npt.NDArray[np.float64],
    storage: StorageModel,
) -> Packing:
    """The packing whose page size makes an average switch fastest without wasting memory.

    Sizes whose mean over-read exceeds `OVER_READ_LIMIT` are out, unless all are: then the least over-read wins.
    """
    packings = [pack(stored, size, block_bytes) for size in reversed(_page_sizes(block_bytes))]
    tasks = len(switch_rate)
    frugal = [packing for packing in packings if mean_over_read(packing, stored, tasks) <= OVER_READ_LIMIT]
    if not frugal:
        return min(packings, key=lambda packing: mean_over_read(packing, stored, tasks))
    return min(frugal, key=lambda packing: expected_seconds(packing, switch_rate, storage))


def _page_sizes(block_bytes: int) -> list[int]:
    """Those that hold a block, and waste little at their end if there is such a size."""
    possible = [size for size in PAGE_SIZES if size >= block_bytes]
    return [size for size in possible if size % block_bytes <= OVER_READ_LIMIT * size] or possible


def expected_seconds(packing: Packing, switch_rate: npt.NDArray[np.float64], storage: StorageModel) -> float:
    """Mean time to load a switch's differential set: Σ π_t P_tu · (reads · cost + bytes / bandwidth + pages · cost)."""
    total = 0.0
    for (current, following), rate in np.ndenumerate(switch_rate):
        if rate > 0 and current != following:
            pages = differential(packing.signatures, current, following)
            runs = coalesce(pages.tolist(), lambda _: len(packing.signatures), packing.page_bytes)
            reading = storage.seconds(len(runs), len(pages) * packing.page_bytes)
            total += rate * (reading + len(pages) * SECONDS_PER_PAGE)
    return total


def differential(signatures: Signatures, current: int, following: int) -> npt.NDArray[np.int64]:
    """Pages that task ``following`` needs and task ``current`` doesn't, ascending."""
    has = (signatures >> np.uint64(following)) & np.uint64(1)
    had = (signatures >> np.uint64(current)) & np.uint64(1)
    return np.flatnonzero(has & ~had)


def over_read(packing: Packing, stored: Sequence[StoredBlocks], tasks: int) -> npt.NDArray[np.float64]:
    """Per task, [tasks]: the share of its pages' bytes that it doesn't use."""
    used = sum(weight.used(tasks) for weight in stored)
    places = packing.page_counts(tasks) * packing.blocks_per_page
    return np.asarray(1.0 - used / np.maximum(places, 1))


def mean_over_read(packing: Packing, stored: Sequence[StoredBlocks], tasks: int) -> float:
    """Mean of `over_read` over the tasks."""
    return float(over_read(packing, stored, tasks).mean())


def _layer_blocks(
    stored: Sequence[StoredBlocks], layer: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Signatures]:
    """Weight index, block index and signature of each stored block of a layer."""
    here = [(number, weight) for number, weight in enumerate(stored) if weight.layer == layer]
    return (
        np.concatenate([np.full(len(weight.blocks), number) for number, weight in here]),
        np.concatenate([weight.blocks for _, weight in here]),
        np.concatenate([weight.signatures for _, weight in here]),
    )


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
