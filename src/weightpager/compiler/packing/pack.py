"""Packing: which block goes to which place of which page.

Blocks that the same tasks keep lie together, so that what is loaded together is read together. Signature grouping is a
heuristic: a page may hold blocks of several signatures, and a task then loads some bytes that it doesn't use
(over-read). Of the page sizes that waste little memory, the one with the least expected time of a switch is taken.

Where a layer has few pages, a read of one layer's pages is short. Pages of several layers then lie in one *stretch*:
those that the same tasks use lie together, so that one read brings the pages of many layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from weightpager.bundle.format.block_table import BlockNumbers
from weightpager.bundle.format.placement import Placement
from weightpager.store import StorageModel, read_count

_CHAINED = 4096
"""Signatures that are put into a chain: all that twelve tasks can make."""

Signatures = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class SignatureChain:
    """Signatures in an order in which neighbours are similar.

    Along it every task's signatures should form few runs, since each run is a read. A run begins where a task's bit
    turns on, so the chain goes to the nearest signature by Hamming distance, from the set of the most tasks on. That
    takes time with the square of the signatures; of many, neighbours in Gray's code are similar enough.

    Attributes:
        signatures: uint64 [signatures], ascending.
        places: int64 [signatures], the place of each along the chain.
    """

    signatures: Signatures
    places: npt.NDArray[np.int64]

    @classmethod
    def of(cls, signatures: Signatures) -> SignatureChain:
        """The chain of the different signatures among these."""
        present = np.unique(signatures)
        if len(present) > _CHAINED:
            return cls(present, np.argsort(np.argsort(_gray(present))))
        rest = sorted((int(signature) for signature in present), key=lambda s: (-s.bit_count(), s))
        chain = rest[:1]
        rest = rest[1:]
        while rest:
            nearest = min(rest, key=lambda s: (s ^ chain[-1]).bit_count())
            rest.remove(nearest)
            chain.append(nearest)
        return cls(present, np.argsort(np.searchsorted(present, np.array(chain, np.uint64))))

    def positions(self, signatures: Signatures) -> npt.NDArray[np.int64]:
        """The place of each of these signatures along the chain; the chain has them all."""
        return np.asarray(self.places[np.searchsorted(self.signatures, signatures)])


def _gray(signatures: Signatures) -> Signatures:
    """Each signature's position among all 2^64 in the order of Gray's code, in which neighbours differ in one bit."""
    positions = signatures.copy()
    for shift in (1, 2, 4, 8, 16, 32):
        positions ^= positions >> np.uint64(shift)
    return np.asarray(positions, np.uint64)


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
        """From a keep mask ``[blocks, tasks]``, and each task's version of each block; None if all share all values."""
        bits = np.uint64(1) << np.arange(keep.shape[1], dtype=np.uint64)
        held = keep * bits  # [blocks, tasks]
        if versions is None:
            versions = np.zeros(keep.shape, np.int8)
        blocks, signatures = [], []
        for version in np.unique(versions):
            signature = np.where(versions == version, held, np.uint64(0)).sum(1, dtype=np.uint64)
            used = np.flatnonzero(signature)
            blocks.append(used)
            signatures.append(signature[used])
        return cls(layer, np.concatenate(blocks), np.concatenate(signatures))

    def used(self, tasks: int) -> npt.NDArray[np.int64]:
        """How many of them each task uses, [tasks]."""
        bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
        return np.asarray(((self.signatures[:, None] & bits) != 0).sum(0))


@dataclass(frozen=True)
class LayerBlocks:
    """The stored blocks of one model layer, in the order in which pages take them, [stored] each."""

    layer: int
    weights: npt.NDArray[np.int64]
    blocks: npt.NDArray[np.int64]
    signatures: Signatures


def ordered(stored: Sequence[StoredBlocks]) -> list[LayerBlocks]:
    """Layer by layer, blocks of one signature together, along a chain."""
    layers = []
    for layer in sorted({weight.layer for weight in stored}):
        here = [(number, weight) for number, weight in enumerate(stored) if weight.layer == layer]
        weights = np.concatenate([np.full(len(weight.blocks), number) for number, weight in here])
        blocks = np.concatenate([weight.blocks for _, weight in here])
        signatures = np.concatenate([weight.signatures for _, weight in here])
        order = np.lexsort((blocks, weights, SignatureChain.of(signatures).positions(signatures)))
        layers.append(LayerBlocks(layer, weights[order], blocks[order], signatures[order]))
    return layers


PAGE_SIZES = tuple(1 << bits for bits in range(12, 21))
"""4 KiB, which direct reads need, to 1 MiB, beyond which no read is faster."""

OVER_READ_LIMIT = 0.05
"""Share of a task's pages that it may not use, on average. Large pages read faster, but every task then needs every
page: paging would save no memory."""

SECONDS_PER_PAGE = 3e-6
"""What a page costs besides its bytes and its read: a hash, a slot, its place in the page table."""

WORTH_THE_ORDER = 1.1
"""Pages follow the order of the layers. Another order is taken only if it makes a switch a tenth faster."""


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
    def model_layers(self) -> int:
        """One more than the highest number of a layer."""
        return int(self.layers.max(initial=0)) + 1

    def reordered(self, pages: npt.NDArray[np.int64]) -> Packing:
        """The same pages in another order."""

        def moved(of_place: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return of_place.reshape(-1, self.blocks_per_page)[pages].reshape(-1)

        return replace(
            self,
            weights=moved(self.weights),
            blocks=moved(self.blocks),
            users=moved(self.users),
            layers=self.layers[pages],
            signatures=self.signatures[pages],
        )

    def stretches(self) -> list[slice]:
        """Pages in runs as short as can be of which no layer goes on in the next run."""
        if not len(self.layers):
            return []
        highest, lowest = np.maximum.accumulate(self.layers), np.minimum.accumulate(self.layers[::-1])[::-1]
        cuts = [0, *(np.flatnonzero(highest[:-1] < lowest[1:]) + 1).tolist(), len(self.layers)]
        return [slice(first, end) for first, end in itertools.pairwise(cuts)]

    def blocks_in_layers(self, numbers: BlockNumbers) -> npt.NDArray[np.int64]:
        """The number in its layer of the block in each place, int64 [pages, blocks_per_page]."""
        numbered = np.where(self.weights < 0, numbers.unused, numbers.in_layer(self.weights, self.blocks))
        return numbered.reshape(-1, self.blocks_per_page)

    def locations_of(self, task: int) -> npt.NDArray[np.int64]:
        """Where the blocks lie that task number ``task`` uses, ascending."""
        return np.flatnonzero(self.users >> np.uint64(task) & np.uint64(1))

    def placement(self, numbers: BlockNumbers, tasks: int) -> Placement:
        """The packing as the block tables of so many tasks."""
        used = map(self.locations_of, range(tasks))
        return Placement.of(numbers, self.layers, self.blocks_in_layers(numbers), used)

    def page_counts(self, tasks: int) -> npt.NDArray[np.int64]:
        """Pages that each task needs, [tasks]."""
        bits = np.uint64(1) << np.arange(tasks, dtype=np.uint64)
        counts: npt.NDArray[np.int64] = ((self.signatures[:, None] & bits) != 0).sum(0)
        return counts


def pack(
    stored: Sequence[StoredBlocks],
    block_bytes: int,
    switch_rate: npt.NDArray[np.float64],
    storage: StorageModel,
    page_bytes: int | None = None,
    faults: float = 0.0,
) -> Packing:
    """Lay out blocks. A page never holds blocks of two layers.

    Args:
        stored: of every paged weight, in execution order.
        block_bytes: bytes of a block; what they leave of a page holds nothing.
        switch_rate: [tasks, tasks], how often one task is followed by another.
        storage: what reads cost.
        page_bytes: bytes of a page. If None, those that make an average switch fastest without wasting memory: sizes
            whose mean over-read exceeds `OVER_READ_LIMIT` are out, unless all are; then the least over-read wins.
        faults: rows of tables that are read between two switches, each with a page of its own, which is as large.
    """
    layers = ordered(stored)
    sizes = [page_bytes] if page_bytes else _page_sizes(block_bytes)
    cuts = (_cut(layers, size, size // block_bytes) for size in reversed(sizes))

    def seconds(packing: Packing) -> float:
        return expected_seconds(packing, switch_rate, storage)

    def price(cut: Packing) -> tuple[bool, float]:
        waste = float(over_read(cut, stored, len(switch_rate)).mean())
        wasteful = waste > OVER_READ_LIMIT
        if wasteful:
            return wasteful, waste
        rows = faults * storage.seconds(1, cut.page_bytes)
        return wasteful, seconds(_in_stretches(cut, _positions(cut), cut.model_layers)) + rows

    cut = min(cuts, key=price)
    positions = _positions(cut)
    whole = _in_stretches(cut, positions, cut.model_layers)
    limit = WORTH_THE_ORDER * seconds(whole)
    shorter = (_in_stretches(cut, positions, length) for length in _lengths(cut.model_layers))
    return next((packing for packing in shorter if seconds(packing) <= limit), whole)


def _cut(layers: Sequence[LayerBlocks], page_bytes: int, places: int) -> Packing:
    """Fill pages, layer by layer."""
    weights, blocks, users, numbers = [], [], [], []
    for here in layers:
        pages = -(-len(here.blocks) // places)
        padding = pages * places - len(here.blocks)
        weights.append(np.pad(here.weights, (0, padding), constant_values=-1))
        blocks.append(np.pad(here.blocks, (0, padding)))
        users.append(np.pad(here.signatures, (0, padding)))
        numbers.append(np.full(pages, here.layer, np.int32))
    of_place = np.concatenate(users).astype(np.uint64)
    return Packing(
        page_bytes,
        places,
        np.concatenate(weights).astype(np.int32),
        np.concatenate(blocks),
        of_place,
        np.concatenate(numbers),
        np.bitwise_or.reduce(of_place.reshape(-1, places), axis=1, initial=0),
    )


def _positions(packing: Packing) -> npt.NDArray[np.int64]:
    """The position of each page along a chain of the pages' signatures, [pages]."""
    return SignatureChain.of(packing.signatures).positions(packing.signatures)


def _in_stretches(packing: Packing, positions: npt.NDArray[np.int64], length: int) -> Packing:
    """Put pages that lie by layer in stretches of so many layers; in a stretch they follow their positions."""
    if length == 1:
        return packing
    return packing.reordered(np.lexsort((packing.layers, positions, packing.layers // length)))


def _lengths(layers: int) -> list[int]:
    """Lengths of stretches, in layers, that are tried, the shortest first."""
    return [1 << bits for bits in range(layers.bit_length()) if 1 << bits < layers]


def _page_sizes(block_bytes: int) -> list[int]:
    """Page sizes that hold a block; if possible only those that waste little at their end."""
    possible = [size for size in PAGE_SIZES if size >= block_bytes]
    return [size for size in possible if size % block_bytes <= OVER_READ_LIMIT * size] or possible


def expected_seconds(packing: Packing, switch_rate: npt.NDArray[np.float64], storage: StorageModel) -> float:
    """Mean time to load a switch's differential set: Σ π_t P_tu · (reads · cost + bytes / bandwidth + pages · cost)."""
    total = 0.0
    for (current, following), rate in np.ndenumerate(switch_rate):
        if rate > 0 and current != following:
            pages = differential(packing.signatures, current, following)
            reading = storage.seconds(read_count(pages, packing.page_bytes), len(pages) * packing.page_bytes)
            total += rate * (reading + len(pages) * SECONDS_PER_PAGE)
    return total


def differential(signatures: Signatures, current: int, following: int) -> npt.NDArray[np.int64]:
    """Pages that task ``following`` needs and task ``current`` doesn't, ascending."""
    has = (signatures >> np.uint64(following)) & np.uint64(1)
    had = (signatures >> np.uint64(current)) & np.uint64(1)
    return np.flatnonzero(has & ~had)


def over_read(packing: Packing, stored: Sequence[StoredBlocks], tasks: int) -> npt.NDArray[np.float64]:
    """Per task, [tasks]: the share of the places in its pages that it doesn't use.

    Bytes at a page's end that hold no block don't count.
    """
    used = sum(weight.used(tasks) for weight in stored)
    places = packing.page_counts(tasks) * packing.blocks_per_page
    return np.asarray(1.0 - used / np.maximum(places, 1))
