"""Paged weights of random numbers, for speed: laid out as a compiled bundle has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightpager.blocks import BlockShape
from weightpager.kernels import PagedWeight
from weightpager.page_dtype import block_bytes

PAGE_BYTES = 1 << 16

BLOCK = BlockShape(16, 32)
"""Of a weight, where no other shape is asked for."""

SIGNATURES = 4
"""Sets of tasks that a weight's blocks belong to: a row's blocks lie in as many pages at least."""


@dataclass(frozen=True)
class Variant:
    """How a weight is cut and what is kept of it."""

    block: BlockShape
    dtype: str
    sparsity: float

    @property
    def block_bytes(self) -> int:
        """Of a block with its scales."""
        return block_bytes(self.block, self.dtype)


@dataclass(frozen=True)
class BlockTables:
    """Which blocks of a weight are kept, and where they lie in its pages.

    Attributes:
        variant: how the weight is cut.
        out_features, in_features: its size.
        crow_indices, col_indices, locations: as `PagedWeight` has them.
    """

    variant: Variant
    out_features: int
    in_features: int
    crow_indices: Tensor
    col_indices: Tensor
    locations: Tensor

    @classmethod
    def draw(cls, out_features: int, in_features: int, variant: Variant, seed: int = 0) -> BlockTables:
        """Random blocks in random signatures; in a page, a signature's blocks lie in the order of the weight."""
        rows, columns = -(-out_features // variant.block.rows), -(-in_features // variant.block.cols)
        random = torch.Generator().manual_seed(seed)
        kept = round((1 - variant.sparsity) * rows * columns)
        places = torch.randperm(rows * columns, generator=random)[:kept].sort().values
        signature = torch.randint(0, SIGNATURES, (kept,), generator=random)
        locations = torch.empty(kept, dtype=torch.int32)
        locations[torch.argsort(signature, stable=True)] = torch.arange(kept, dtype=torch.int32)
        crow = torch.zeros(rows + 1, dtype=torch.int32)
        crow[1:] = torch.bincount(places // columns, minlength=rows).cumsum(0)
        return cls(variant, out_features, in_features, crow, (places % columns).int(), locations)

    @property
    def bytes(self) -> int:
        """Of the kept blocks."""
        return len(self.locations) * self.variant.block_bytes

    @property
    def pages(self) -> int:
        """That the kept blocks fill."""
        return -(-len(self.locations) // (PAGE_BYTES // self.variant.block_bytes))

    def weight(self, arena: Tensor, page_table: Tensor) -> PagedWeight:
        """The weight whose pages lie in these slots of an arena."""
        return PagedWeight(
            arena=arena.numpy(),
            page_table=page_table.numpy(),
            crow_indices=self.crow_indices.numpy(),
            col_indices=self.col_indices.numpy(),
            locations=self.locations.numpy(),
            out_features=self.out_features,
            in_features=self.in_features,
            block_rows=self.variant.block.rows,
            block_cols=self.variant.block.cols,
            dtype=self.variant.dtype,
        )


def filled_arena(bytes_: int) -> Tensor:
    """Pages whose bytes are small numbers in every dtype."""
    size = (1 << 22,)
    piece = torch.randint(0x3800, 0x3D00, size).short() | torch.randint(0, 2, size).short() << 15
    pages = -(-bytes_ // PAGE_BYTES)
    return piece.repeat(-(-pages * PAGE_BYTES // piece.nbytes)).view(torch.uint8).view(-1, PAGE_BYTES)[:pages]
