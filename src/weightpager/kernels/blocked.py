"""`Blocked`: how a weight is cut into blocks, whatever holds them."""

from __future__ import annotations

from typing import Any

from weightpager.page_dtype import ENCODINGS, Encoding


class Blocked:
    """Sizes of a paged weight that follow from others. `PagedWeight` says what its attributes are."""

    __slots__ = ()

    arena: Any
    col_indices: Any
    out_features: int
    in_features: int
    block_rows: int
    block_cols: int
    dtype: str

    def __reduce_ex__(self, _: Any) -> Any:
        """Refuse copies and pickles.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "paged weights live in the arena of an engine: a task's module can be neither copied nor pickled; "
            "'weightpager export' writes an ordinary one"
        )

    @property
    def encoding(self) -> Encoding:
        """How its blocks are stored."""
        return ENCODINGS[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Bytes in a block, without its scales."""
        return self.encoding.number_bytes(self.block_rows, self.block_cols)

    @property
    def scale_bytes(self) -> int:
        """Bytes of a block's scales."""
        return self.encoding.scale_bytes(self.block_rows)

    @property
    def blocks_per_page(self) -> int:
        """Blocks in a page. What is left of the page's bytes is not theirs."""
        return int(self.arena.shape[1]) // (self.block_bytes + self.scale_bytes)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks in the whole weight."""
        return -(-self.out_features // self.block_rows), -(-self.in_features // self.block_cols)

    @property
    def kept(self) -> int:
        """Blocks that the task keeps."""
        return int(self.col_indices.shape[0])

    def check_sizes(self) -> None:
        """See that the sizes are what kernels take.

        Raises:
            ValueError: one isn't.
        """
        if self.dtype not in ENCODINGS:
            *others, last = ENCODINGS
            raise ValueError(f"dtype: expected {', '.join(others)} or {last}, got {self.dtype}")
        for name in ("out_features", "in_features"):
            size = getattr(self, name)
            if not 1 <= size < 2**31:
                raise ValueError(f"{name}: expected 1 to {2**31 - 1}, got {size}")
        for name in ("block_rows", "block_cols"):
            size = getattr(self, name)
            if not 8 <= size <= 256 or size & (size - 1):
                raise ValueError(f"{name}: expected a power of two from 8 to 256, got {size}")
