"""What every kernel but the reference is given: memory to read from, and memory to write to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter


def operands(x: Tensor, out_features: int) -> tuple[Tensor, Tensor]:
    """The activations as contiguous memory, and memory for the result.

    Raises:
        ValueError: one of them has no values.
    """
    rows = x if x.is_contiguous() else x.contiguous()
    y = torch.empty((*x.shape[:-1], out_features), dtype=x.dtype, device=x.device)
    for tensor in (rows, y):
        check_memory(tensor)
    return rows, y


def check_memory(tensor: Tensor) -> None:
    """Refuse a FakeTensor, which has a shape but no memory; tensors that are made in `FakeTensorMode` are such.

    Raises:
        ValueError: it has no values.
    """
    if type(tensor) in (Tensor, Parameter):
        return
    from torch._subclasses import FakeTensor  # takes long, and nearly never is there any

    if isinstance(tensor, FakeTensor):
        raise ValueError(
            "expected tensors with values, got a FakeTensor: call kernels outside of FakeTensorMode, or the task's "
            "layers inside of it"
        )
