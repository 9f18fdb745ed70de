"""A dense linear layer in int8, as torchao's weight-only quantisation has it on CPUs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_STEP = 32


class Int8Linear(nn.Linear):
    """``y = (x Wᵀ) · scale + bias`` with W in int8 and a scale for each output; x in bfloat16.

    A `torch.nn.Linear`, so that PEFT puts adapters beside it.

    Args:
        weight: int8 [out_features, in_features].
        scale: bfloat16 [out_features].
        bias: [out_features] or None.
    """

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        out_features, in_features = weight.shape
        super().__init__(in_features, out_features, bias=bias is not None, device="meta", dtype=torch.bfloat16)
        self.weight = nn.Parameter(weight, requires_grad=False)
        if bias is not None:
            self.bias = nn.Parameter(bias, requires_grad=False)
        self.register_buffer("scale", scale)
        self.scale: Tensor

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """``[..., in_features]`` to ``[..., out_features]``."""
        rows = input.reshape(-1, self.in_features)
        if self.in_features % _STEP or self.out_features % _STEP:  # torch's kernel reads past the end of such
            y = linear(rows, self.weight.to(rows.dtype)) * self.scale
        else:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        y = y.view(*input.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias
