"""The pure values that everything else speaks of: block shapes, grids, keep masks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from weightpager.errors import ConfigError

KeepMask = npt.NDArray[np.bool_]
"""[block_rows, block_cols], True where a block is kept."""

MAX_TASKS = 64
"""A signature is one 64-bit word."""

_SHAPE = re.compile(r"(\d{1,4})x(\d{1,4})")


@dataclass(frozen=True)
class BlockShape:
    """``rows × cols`` weights: the unit of sparsity and of compute.

    Rows are output features. Both are powers of two, columns even and at least 8: kernels consume pairs or
    quads of input features, and a page then holds a whole number of blocks.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        for name, size, least in (("rows", self.rows, 8), ("cols", self.cols, 8)):
            if not least <= size <= 256 or size & (size - 1):
                raise ConfigError(f"block {name}: expected a power of two from {least} to 256, got {size}")

    @classmethod
    def parse(cls, text: str) -> BlockShape:
        """Read ``"16x32"``."""
        match = _SHAPE.fullmatch(text.strip())
        if match is None:
            raise ConfigError(f"block: expected ROWSxCOLS such as 16x32, got {text!r}")
        return cls(int(match[1]), int(match[2]))

    @property
    def size(self) -> int:
        """Weights in a block."""
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class BlockGrid:
    """A weight ``[out_features, in_features]`` cut into blocks; the last row and column of blocks may be partial."""

    out_features: int
    in_features: int
    block: BlockShape

    @property
    def rows(self) -> int:
        """Rows of blocks."""
        return -(-self.out_features // self.block.rows)

    @property
    def cols(self) -> int:
        """Columns of blocks."""
        return -(-self.in_features // self.block.cols)

    @property
    def count(self) -> int:
        """Blocks in the whole weight."""
        return self.rows * self.cols

    def cut(self, weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Cut ``weight [out_features, in_features]`` into ``[rows, cols, block.rows, block.cols]``, zero-padded."""
        if weight.shape != (self.out_features, self.in_features):
            raise ValueError(f"expected a weight of {self.out_features}x{self.in_features}, got {weight.shape}")
        padded = np.zeros((self.rows * self.block.rows, self.cols * self.block.cols), weight.dtype)
        padded[: self.out_features, : self.in_features] = weight
        cut: npt.NDArray[np.generic] = padded.reshape(self.rows, self.block.rows, self.cols, self.block.cols)
        return np.swapaxes(cut, 1, 2)

    def join(self, blocks: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The inverse of `cut`."""
        padded = blocks.swapaxes(1, 2).reshape(self.rows * self.block.rows, self.cols * self.block.cols)
        joined: npt.NDArray[np.generic] = padded[: self.out_features, : self.in_features]
        return joined
