"""The blocks that a bundle has to store, and the order in which pages take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.compiler.packing.signature_chain import SignatureChain, Signatures


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
