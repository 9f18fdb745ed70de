"""In which dtypes a bundle's resident and private parameters are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from weightpager.compiler.model.paged_weights import embedding_tables
from weightpager.page_dtype import PageDtype


@dataclass(frozen=True)
class ParameterFormat:
    """What parameters are rounded to where they are written; before that they are in float32.

    Attributes:
        dtype: of floating-point parameters, in which activations are computed.
        tables: canonical names of those that are written in bfloat16 in any case.
    """

    dtype: torch.dtype
    tables: frozenset[str]

    @classmethod
    def of(cls, config: PretrainedConfig, models: Mapping[str, PreTrainedModel], pages: PageDtype) -> ParameterFormat:
        """bfloat16 for a checkpoint that has it; else float32, but for embedding tables beside rounded pages."""
        dtype = torch.bfloat16 if config.dtype == torch.bfloat16 else torch.float32  # None where none is stated
        return cls(dtype, frozenset() if pages == "float32" else embedding_tables(models))

    def dtype_of(self, name: str, tensor: Tensor) -> torch.dtype:
        """Of a parameter by canonical name; whole numbers stay what they are."""
        if not tensor.is_floating_point():
            return tensor.dtype
        return torch.bfloat16 if name in self.tables else self.dtype

    def content(self, tensors: Mapping[str, Tensor]) -> bytes:
        """A parameter file's content."""
        written = {name: tensor.detach().to(self.dtype_of(name, tensor)) for name, tensor in tensors.items()}
        return bytes(save({name: tensor.contiguous().clone() for name, tensor in written.items()}))
