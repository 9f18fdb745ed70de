"""The native CPU kernels over tensors: the checked call.

Importing this module fails with ImportError where the native module hasn't been built.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightpager.kernels.native import native_weight
from weightpager.kernels.paged_weight import PagedWeight, PageNotResidentError
from weightpager.kernels.torch.device_weight import check_memory, operands


def paged_linear(x: Tensor, weight: PagedWeight, bias: Tensor | None, isa: int) -> Tensor:
    """As `weightpager.kernels.torch.paged_linear`, which has checked x and bias, by kernel number ``isa``."""
    rows, y = operands(x, weight.out_features)
    missing = native_weight(weight).linear(
        isa,
        rows.data_ptr(),
        y.data_ptr(),
        x.dtype == torch.bfloat16,
        rows.numel() // weight.in_features,
        *_bias(bias),
        torch.get_num_threads(),
    )
    return _complete(y, missing)


def paged_gated(
    x: Tensor,
    gate: PagedWeight,
    weight: PagedWeight,
    activation: str,
    biases: tuple[Tensor | None, Tensor | None],
    isa: int,
) -> Tensor:
    """``activation(x @ gate.T + biases[0]) * (x @ W.T + biases[1])``, as `paged_linear`."""
    rows, y = operands(x, weight.out_features)
    missing = native_weight(weight).gated(
        isa,
        native_weight(gate),
        activation,
        rows.data_ptr(),
        y.data_ptr(),
        x.dtype == torch.bfloat16,
        rows.numel() // weight.in_features,
        *_bias(biases[0]),
        *_bias(biases[1]),
        torch.get_num_threads(),
    )
    return _complete(y, missing)


def _complete(y: Tensor, missing: int) -> Tensor:
    if missing >= 0:
        raise PageNotResidentError(missing)
    return y


def _bias(bias: Tensor | None) -> tuple[int, bool]:
    """Address, 0 for none, and whether it is bfloat16. `dispatch` has made sure that it has no gaps."""
    if bias is None:
        return 0, False
    check_memory(bias)
    return bias.data_ptr(), bias.dtype == torch.bfloat16
