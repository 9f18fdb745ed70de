"""In which dtypes a bundle's resident and private parameters are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.blocks import BlockShape
from weightpager.bundle.format.whole_weight import WholeWeightEntry, encode_whole
from weightpager.compiler.model.paged_weights import embedding_tables, whole_weights
from weightpager.page_dtype import ENCODINGS, PageDtype

_WHOLE: PageDtype = "int8"
"""The dtype of whole weights, beside pages of few bits. In int4 a head costs language models much (decision 53)."""


@dataclass(frozen=True)
class ParameterFormat:
    """What parameters are rounded to where they are written; before that they are in float32.

    Attributes:
        dtype: the dtype of floating-point parameters, in which activations are computed.
        block: the bundle's block shape.
        tables: canonical names of the tables that are written in bfloat16 in any case.
        whole: canonical names of the weights that are written as blocks of few bits.
    """

    dtype: torch.dtype
    block: BlockShape
    tables: frozenset[str] = frozenset()
    whole: Mapping[str, WholeWeightEntry] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: PretrainedConfig, models: Mapping[str, PreTrainedModel], pages: PageDtype, block: BlockShape
    ) -> ParameterFormat:
        """bfloat16 for a checkpoint that has it; else float32, but for embedding tables beside rounded pages.

        Whole weights are in int8 beside pages of few bits, where that takes less memory.
        """
        dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32  # None where none is stated
        shapes = whole_weights(models, block) if ENCODINGS[pages].scaled else {}
        entries = {
            name: WholeWeightEntry(name=name, rows=rows, columns=columns, dtype=_WHOLE)
            for name, (rows, columns) in shapes.items()
        }
        whole = {
            name: entry
            for name, entry in entries.items()
            if entry.memory(block) < entry.rows * entry.columns * dtype.itemsize
        }
        return cls(dtype, block, frozenset() if pages == "float32" else embedding_tables(models), whole)

    def dtype_of(self, name: str, tensor: Tensor) -> torch.dtype:
        """The dtype of a parameter by canonical name, if it isn't written as blocks; whole numbers keep theirs."""
        if not tensor.is_floating_point():
            return tensor.dtype
        return torch.bfloat16 if name in self.tables else self.dtype

    def bytes_of(self, name: str, tensor: Tensor) -> int:
        """Bytes of a parameter by canonical name, as it is written."""
        if name in self.whole:
            return self.whole[name].bytes(self.block)
        return tensor.numel() * self.dtype_of(name, tensor).itemsize

    def content(self, tensors: Mapping[str, Tensor]) -> bytes:
        """A parameter file's content."""
        return bytes(save({name: self._written(name, tensor.detach()) for name, tensor in tensors.items()}))

    def _written(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.whole:
            return torch.from_numpy(encode_whole(tensor.float().numpy(), self.whole[name], self.block))
        return tensor.to(self.dtype_of(name, tensor)).contiguous().clone()
