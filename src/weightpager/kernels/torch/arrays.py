"""Tensors and arrays over the same memory; numpy has no bfloat16, so that its values are uint16 there."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def as_array(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor on the host as an array; bfloat16 as uint16."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def as_tensor(array: npt.NDArray[Any], dtype: str) -> Tensor:
    """An array as a tensor of a dtype by name; uint16 of a bfloat16."""
    if dtype == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
