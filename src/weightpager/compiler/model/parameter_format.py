"""In which dtypes a bundle's resident and private parameters are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.blocks import BlockShape
from weightpager.bundle.format.tied_table import TiedDtype, TiedTableEntry, encode_table
from weightpager.compiler.model.paged_weights import embedding_tables, tied_tables
from weightpager.page_dtype import PageDtype

_FEW_BITS = ("int8", "int4")

_TIED: TiedDtype = "int8"
"""The dtype of tables that a head is tied to, beside pages of few bits. In int4 they cost language models much
(decision 53)."""


@dataclass(frozen=True)
class ParameterFormat:
    """What parameters are rounded to where they are written; before that they are in float32.

    Attributes:
        dtype: the dtype of floating-point parameters, in which activations are computed.
        block: the bundle's block shape.
        tables: canonical names of the tables that are written in bfloat16 in any case.
        tied: canonical names of the tables that are written as blocks of few bits.
    """

    dtype: torch.dtype
    block: BlockShape
    tables: frozenset[str] = frozenset()
    tied: Mapping[str, TiedTableEntry] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: PretrainedConfig, models: Mapping[str, PreTrainedModel], pages: PageDtype, block: BlockShape
    ) -> ParameterFormat:
        """bfloat16 for a checkpoint that has it; else float32, but for embedding tables beside rounded pages.

        A table that a head is tied to is in int8 beside pages of few bits, where that takes less memory.
        """
        dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32  # None where none is stated
        shapes = tied_tables(models) if pages in _FEW_BITS else {}
        entries = {
            name: TiedTableEntry(name=name, rows=rows, columns=columns, dtype=_TIED)
            for name, (rows, columns) in shapes.items()
        }
        tied = {
            name: entry
            for name, entry in entries.items()
            if entry.memory(block) < entry.rows * entry.columns * dtype.itemsize
        }
        return cls(dtype, block, frozenset() if pages == "float32" else embedding_tables(models), tied)

    def dtype_of(self, name: str, tensor: Tensor) -> torch.dtype:
        """The dtype of a parameter by canonical name, if it isn't written as blocks; whole numbers keep theirs."""
        if not tensor.is_floating_point():
            return tensor.dtype
        return torch.bfloat16 if name in self.tables else self.dtype

    def bytes_of(self, name: str, tensor: Tensor) -> int:
        """Bytes of a parameter by canonical name, as it is written."""
        if name in self.tied:
            return self.tied[name].bytes(self.block)
        return tensor.numel() * self.dtype_of(name, tensor).itemsize

    def content(self, tensors: Mapping[str, Tensor]) -> bytes:
        """A parameter file's content."""
        return bytes(save({name: self._written(name, tensor.detach()) for name, tensor in tensors.items()}))

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.tied:
            return torch.from_numpy(encode_table(tensor.float().numpy(), self.tied[name], self.block))
        return tensor.to(self.dtype_of(name, tensor)).contiguous().clone()
